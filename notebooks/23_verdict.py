# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads_where_present: [
#     09_evaluation, 10_norms, 11_angles, 12_decomposition, 13_connectivity,
#     14_representations, 15_chance, 16_seeds, 17_matched_dpo, 18_gradient_plane,
#     19_variants, 20_on_policy, 21_interventions, 22_pretrained]
# ---

# %% [markdown]
# # Verdict: the paper's claims, one by one
#
# *Previously,* [accuracy](09_evaluation.ipynb), [direction and size](10_norms.ipynb), [angles](11_angles.ipynb), [what is orthogonal](12_decomposition.ipynb),
# [paths](13_connectivity.ipynb) and [representations](14_representations.ipynb), and then the controls, from [chance](15_chance.ipynb) to [interventions](21_interventions.ipynb). *Now* all
# of it is set beside the claims of {cite:t}`nikolich2026geometry`, one line a claim, and beside what we had expected.
#
# **Key takeaways**
# - A claim holds here when the ordering that it states is true at every seed and our interval lies outside the band of its control.
# - An ordering may be true and prove nothing, because chance or arithmetic would give it too; such lines are marked.
# - A claim that fails on models of this size is not refuted for larger ones, and one that holds is not confirmed for them.
#
# You need: the pages named above. Reads the tables that they wrote. Time to run: a few seconds.

# %% tags=["parameters"]
profile = "tiny"  # the study to show: tiny, or smoke for a test of the plumbing

# %%
from IPython.display import Markdown
from myst_nb import glue

from helpers import profiles, store
from helpers.analysis import predictions, verdict
from helpers.book import explorers, figures

figures.use_style(profiles.load(profile))
claims = store.write_table(profile, "verdict", verdict.verdict_table(profile))


def shown(table):
    """A table for the page, its text at the left."""
    return table.style.hide(axis="index").set_properties(**{"text-align": "left"})


def section(part):
    """The lines of one part of the verdict, as a table for the page."""
    columns = ["claim", "paper", "ours", "control", "verdict"]
    return shown(claims[claims.part == part][columns])


def state_of(part):
    """How many lines of a part have which verdict, as a sentence."""
    counts = claims[claims.part == part].verdict.value_counts()
    if counts.empty:
        return Markdown("The pages that these claims are read from are not part of "
                        "this profile.")
    texts = [f"{count} *{name}*" for name, count in counts.items()]
    return Markdown(f"Of these claims, {', '.join(texts)}.")


# %% [markdown]
# ## What "holds" means
#
# Let a claim state an ordering, such as "DPO's cosine with SFT is smaller than that of any other method", let $[l, h]$ be the 95 % interval of our
# number over seeds, and $[c_l, c_h]$ the band of its control: where the number would lie by chance, or without the thing that the claim is about. The claim holds if the ordering is true and
#
# ```{math}
# :label: eq-verdict-holds
# h < c_l \quad\text{or}\quad l > c_h .
# ```
#
# If the ordering is true but {eq}`eq-verdict-holds` is not, the line says *holds, but at chance*. If arithmetic makes it true for all data, it
# says *holds, by construction*. If the ordering is false, it *does not hold here*. A claim of absence, such as "no barrier", has no band to
# leave; its control says how much would have been seen. A claim that two accuracies are *equal* holds if no difference is seen and $[l, h]$ also leaves out every difference as large as the smallest lead
# of the paper's DPO over the other five; an interval that is too wide for this says *holds, but at chance*, for a lack of evidence is not evidence of a lack.

# %%
beyond = verdict.judge(True, 0.3, 0.4, (-0.1, 0.1))
touching = verdict.judge(True, 0.05, 0.4, (-0.1, 0.1))
false = verdict.judge(False, 0.3, 0.4, (-0.1, 0.1))
Markdown(f"""For example, an interval from 0.3 to 0.4 beside a band from −0.1 to 0.1
gives *{beyond}*; from 0.05 to 0.4 it gives *{touching}*, and with a false ordering
*{false}*.""")

# %% [markdown]
# Two things limit what such a line is worth. Few seeds per method, three in the small study, give wide intervals, by [Student's factor](09_evaluation.ipynb), and no view of rare outcomes. And the control is in each case one of several possible ones;
# which one fits which claim is argued in the chapter on [chance levels](15_chance.ipynb). Lines about a single run, such as those at another rate, have no interval over seeds and say so.
#
# ## Behaviour
#
# The paper's first result is a table of accuracies: five methods alike, and DPO above them. Its base model has no line in that table, although its accuracy is known.

# %%
section("behaviour")

# %%
state_of("behaviour")

# %% [markdown]
# The first line is a claim of equality. Its interval is over seeds and so is wider than the smallest difference that the tests could have found at one seed, which stands in its control: what one seed
# cannot tell apart, several seeds need not agree on. The lines on the base turn the question round: if the five lost against it and DPO did not, then "DPO is best" means "DPO harmed least".
# What the trained models lost, and that the base loses it too when it has to write in the teacher's style, is told in the chapter on [evaluation](09_evaluation.ipynb).
#
# ## The learning rate
#
# The paper leaves open what DPO would do at the rate of the others. These lines are the answer for our models; the [chapter on matched DPO](17_matched_dpo.ipynb) has the other ways to match.

# %%
section("the rate")

# %%
state_of("the rate")

# %% [markdown]
# ## Direction
#
# These claims are about one number for each pair of methods: the cosine of their updates, all modules stacked. In the line "DPO is nearly orthogonal to all others" the ordering alone is the claim: DPO's cosines are smaller than those of DFT and of
# Offline GRPO with SFT. That the largest of them lies outside the band says that it is small and yet *not* unrelated; an interval inside the band would be the more orthogonal one.

# %%
section("direction")

# %%
state_of("direction")

# %% mystnb={"image": {"alt": "Dot plot of the cosines that the paper claims: the paper's value as an open diamond, ours as a dot with its interval, and the band of unrelated updates in grey"}, "figure": {"caption": "Cosines of the paper (open diamonds) and of this build (dots, with 95 % intervals over seeds); grey: 95 % of unrelated updates with the same spectra.", "name": "fig-verdict-direction"}}
is_cosine = (claims.part == "direction") & claims.chance_low.notna()
cosines = claims[is_cosine & claims.paper_value.notna()]
figures.claims(cosines, "cosine of the stacked updates");

# %% [markdown]
# In {numref}`fig-verdict-direction` the distance of a dot from its diamond is the distance of two studies whose models differ in size by a factor of three thousand. It is
# the order of the dots that is comparable. The grey band belongs to updates that have nothing in common; that two updates are outside it says that they share *something*. How much of it is the initial adapter's, the
# data's and the loss's is divided up in the [chapter on seeds](16_seeds.ipynb), and the control column quotes the number to beat: one loss with itself, from another seed.
#
# The line about two thirds is there as a warning. The orthogonal part of an update, by norm, is a function of its cosine,
#
# ```{math}
# :label: eq-verdict-identity
# \frac{\|\Delta W_\perp\|}{\|\Delta W\|} = \sqrt{1 - \cos^2},
# ```
#
# so that .74 and .67 are one finding and not two, by {eq}`eq-verdict-identity`.

# %%
parts = claims[claims.claim.str.startswith("Two thirds")].value
Markdown(f"""From the paper's cosine of .74 follows $\\sqrt{{1 - .74^2}}$ =
{(1 - 0.74 ** 2) ** 0.5:.2f}; from ours follows
{', '.join(f'{value:.2f}' for value in parts)}.""")

# %% [markdown]
# ## Size and rank
#
# A cosine is blind to length. The lengths differ by an order of magnitude in the paper, where DPO was also trained at a tenth of the learning rate.

# %%
section("size")

# %%
state_of("size")

# %% [markdown]
# Part of DPO's shortness is the learning rate: the paper's own runs grow three times longer when the rate grows ten times, which would leave a factor of about four for the loss itself. The line
# before the last puts the two methods at one rate.
#
# ## Angles
#
# A small smallest angle says that two updates share one direction; a large largest one says very little, as the band beside it shows.

# %%
section("angles")

# %%
state_of("angles")

# %% mystnb={"image": {"alt": "Dot plot of principal angles with SFT: the paper's medians as open diamonds, ours as dots with intervals, and the band of random subspaces in grey"}, "figure": {"caption": "Principal angles with SFT, medians over modules, of the paper (open diamonds) and of this build (dots); grey: random subspaces of the dimensions of this build.", "name": "fig-verdict-angles"}}
figures.claims(claims[claims.part == "angles"], "degrees");

# %% [markdown]
# The bands of {numref}`fig-verdict-angles` are ours. In the paper's dimensions random subspaces are further apart: their smallest angle is 80 to 85 degrees and their largest
# above 89.6, so there the 54.6 degrees between SFT and DPO are far from chance, and the 90 degrees are chance.
#
# ## First vectors
#
# The one direction in which an update is strongest, on each side.

# %%
section("vectors")

# %%
state_of("vectors")

# %% [markdown]
# ## Seeds
#
# What the paper says of two runs of one loss is the yardstick for everything above.

# %%
section("seeds")

# %%
state_of("seeds")

# %% [markdown]
# ## Paths
#
# The paper's own metric is the loss of the bare boxed answer, right after the prompt; these lines use it too. *No barrier* means in them that the loss stays between its two ends, to a hundredth of a nat, and at no seed rises above both; such a curve may still bend above its chord by more than chance, and the number in the line is that height. The loss of whole correct solutions, which is what the methods trained on, is in the chapter on
# [connectivity](13_connectivity.ipynb).

# %%
section("paths")

# %%
state_of("paths")

# %% [markdown]
# The control of the last line is the path from RIFT to the *base*. DPO's update is so short that a path towards it is nearly a path towards no update at all, and what looks like a
# barrier between two methods may be what happens to any update when it is scaled down.
#
# ## Representations

# %%
section("representations")

# %%
state_of("representations")

# %% [markdown]
# Debiased {term}`CKA <centred kernel alignment>` is near zero for unrelated features, the plain form is not: for independent Gaussian features of a hundred texts in 2560 dimensions it is already .96. Which of the two the paper
# used is not known to us.
#
# ## On-policy training

# %%
section("on-policy")

# %%
state_of("on-policy")

# %% [markdown]
# These lines come from one run of online GRPO; [its chapter](20_on_policy.ipynb) has the six offline objectives on the base's own rollouts too.
#
# ## A second model
#
# The paper repeats its geometry on a second pretrained model. So does this book, on SmolLM2-135M-Instruct (weights rounded to four bits, adapted to the problems: [how, and all its numbers](22_pretrained.ipynb)).

# %%
section("a second model")

# %%
state_of("a second model")

# %% [markdown]
# Fifteen cosines between six methods are not fifteen independent numbers, for one method that stands apart lowers five of them at once. The control exchanges the methods of one model in every possible way {cite:p}`mantel1967`: it is the
# correlation that two geometries would have if the losses' names meant nothing.
#
# ## What was expected
#
# Before any control was run, a [list of predictions](../predictions.md) was written down, each with a range and with the outcome that would change our mind. Here is what came of them, unedited.

# %%
expected = predictions.outcomes(profile)
answers = {True: "yes", False: "no"}
lines = expected[["number", "expected", "outcome"]].assign(**{
    "as expected": expected.is_expected.map(answers),
    "what would change our mind": expected.changes_mind.map(answers)})
shown(lines.fillna("–"))

# %%
known = expected[expected.outcome.notna()]
Markdown(f"""Of {len(expected)} predictions, {len(known)} have an outcome here:
**{int(known.is_expected.sum())}** came out as expected, and
**{int(known.changes_mind.sum())}** came out in the way that was said to change our
mind.""")

# %% [markdown]
# A wrong prediction is worth more than a right one if it was made for a reason, and the reasons stand on the page of predictions.
#
# ## All in all

# %% mystnb={"image": {"alt": "Bar chart of how many claims have each verdict: holds, holds but at chance, holds by construction, does not hold here, can't be tested at this size"}, "figure": {"caption": "How many of the claims have which verdict in this build.", "name": "fig-verdict-counts"}}
order = [verdict.HOLDS, verdict.CHANCE, verdict.CONSTRUCTION, verdict.FAILS,
         verdict.UNTESTED]
counts = claims.verdict.value_counts().reindex(order, fill_value=0)
figures.bars(counts, "verdict", "claims");

# %%
failed = [f"*{claim}*" for claim in claims.claim[claims.verdict == verdict.FAILS]]
hold, chance, construction, fail, untested = counts
headline = (f"of {len(claims)} claims {hold} hold, {chance + construction} hold only "
            f"at chance or by construction, {fail} do not hold, and {untested} can't "
            "be tested at this size")
glue("verdict-counts", headline, display=False)
Markdown(f"""Of the {len(claims)} claims, **{hold}** hold. Those that do not hold
here: {'; '.join(failed) or 'none'}.""")

# %% [markdown]
# **Explorer.** Every claim with a number, a part at a time: ours with its interval, the band of its control in grey, and the paper's value as a diamond where it is one of the same quantity.

# %%
numbered = claims[claims.value.notna()].groupby("part", sort=False)
pictures = ((part, figures.claims(rows, "in the claims' own units"),
             f"Dot plot of {len(rows)} claims about {part}, ours with intervals: "
             + "; ".join(f"{row.claim}: {row.ours}" for row in rows.itertuples()))
            for part, rows in numbered)
columns = ["claim", "part", "paper", "ours", "control", "verdict"]
explorers.frames(pictures, "part", claims[columns], "claims-by-part", is_ordered=False)

# %% [markdown]
# {numref}`fig-verdict-counts` is a count of lines and not a score: the lines depend on each other, and a claim that fails here may fail because these models are small, because the teacher's style
# costs this base so much, or because it was an accident of one seed; the control beside each line says which of these it is most likely to be.
#
# ## Beside other profiles
#
# The same claims for every study whose verdict has been computed in this copy of the book or came with it, one pair of columns each. The verdict of a study with fewer controls has fewer lines, and one with two seeds has intervals over seeds that are about three and a half times as wide
# as those of three, for the same spread: $12.7/\sqrt 2$ beside $4.3/\sqrt 3$.

# %%
others = [name for name in profiles.names() if name not in (profile, "smoke")
          and store.table_path(name, "verdict").exists()]
studies = verdict.side_by_side([profile, *others]).reset_index()
shown(studies.rename(columns=lambda name: name if isinstance(name, str)
                     else ", ".join(name)))

# %%
lists = verdict.agreement(profile, verdict.PRETRAINED)
lines = [f"- Holds **{where}** ({len(names)}): "
         f"{'; '.join(f'*{name}*' for name in names) or 'none'}."
         for where, names in lists.items()]
origin = store.table_origin(verdict.PRETRAINED, "verdict")
Markdown("\n".join(lines) + f"\n\n{origin}")

# %% [markdown]
# To hold is to agree with the paper and to be outside the control's band. The first list is what two models, made in different ways, both confirm; the last is where both disagree with the paper or cannot tell. A claim in one of the two lists between them hangs on the model, or on how many
# seeds it was given.
#
# ## Try it
#
# 1. How would the verdict on "DPO is nearly orthogonal to all others" change if the band were that of a fixed cosine of zero, `(0, 0)`?
#
# ````{dropdown} Answer
# Not at all where the interval lies outside the band of unrelated updates already. In general, any interval that leaves out zero would then count as outside: `verdict.judge(True, low, high, (0, 0))`. A band of no width asks whether a number is exactly zero, and with enough modules no number is.
# ````
#
# 2. Which verdicts would change if a claim had to be true at the main seed only?
#
# ````{dropdown} What to do
# Take the first seed alone where `claim_statistics._is_ordered` asks for the truth at every seed (`np.all`). A line that changes was decided by one run.
# ````
#
# 3. Read the table with a program and keep what holds.
#
# ````{dropdown} Answer
# `store.read_table("tiny", "verdict").query("verdict == 'holds'")[["claim", "value", "low", "high", "control"]]`.
# ````
#
# ## Summary
#
# Every claim has a number, an interval, a control and a verdict, and all four come from the tables of this build. The same table stands on the front page.
