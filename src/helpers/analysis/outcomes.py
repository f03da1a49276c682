"""What each page of controls found, as outcomes of `predictions`: the ranges are those of the file.

Comes after `predictions`. One function per page, which takes the page's numbers: a value alone, or
(value, low, high) with its interval. `about` says which of several values is shown.
"""

from collections.abc import Mapping
from typing import Any

from helpers.analysis.predictions import outcome

Interval = tuple[float, float, float]  # value, low, high
Outcome = dict[str, Any]


def of_seeds(
    apart: Interval,
    reordered: Interval,
    first_left: Interval,
    first_right: Interval,
    mirrored: Interval,
    initialisation: Interval,
    subset: Interval,
    rft: float,
    about_mirrored: str,
) -> list[Outcome]:
    """Initialisation, seeds and data.

    apart, reordered: cosines of SFT with itself. first_left, first_right: overlaps of first
    vectors. mirrored: share in the initial column space of B. initialisation: share of the
    variance. subset, rft: cosines of SFT with random rows and with RFT.
    """
    difference = subset[0] - rft
    return [
        outcome(
            "SFT and SFT with another initial $A$ and another order",
            apart[0],
            0.2 <= apart[0] <= 0.5,
            apart[0] > 0.8,
            *apart[1:],
        ),
        outcome(
            "the same, another order only",
            reordered[0],
            0.8 <= reordered[0] <= 0.95,
            reordered[0] < 0.6,
            *reordered[1:],
        ),
        outcome(
            "first left singular vectors of two SFT runs with different $A$, mean absolute cosine",
            first_left[0],
            first_left[0] > 0.7,
            first_left[0] < 0.3,
            *first_left[1:],
        ),
        outcome(
            "first right singular vectors of the same",
            first_right[0],
            first_right[0] < 0.4,
            first_right[0] > 0.7,
            *first_right[1:],
        ),
        outcome(
            "mirrored start ($A = 0$, $B$ random), two methods, share of the update in the"
            " initial column space of $B$",
            mirrored[0],
            mirrored[0] > 0.7,
            mirrored[0] < 0.3,
            *mirrored[1:],
            about=about_mirrored,
        ),
        outcome(
            "share of the variance of the cosine explained by the initialisation, in the design of"
            " three starts and three orders",
            initialisation[0],
            initialisation[0] > 0.5,
            initialisation[0] < 0.25,
            *initialisation[1:],
            about="over the pairs of SFT",
        ),
        outcome(
            "SFT on a random subset of as many rows as RFT has, against SFT",
            subset[0],
            abs(difference) <= 0.03,
            difference >= 0.05,
            *subset[1:],
            about=f"mean of two subsets (both values); RFT has {rft:.3f}",
        ),
    ]


def of_matched_dpo(
    norm: float,
    cosine: float,
    cosine_chance: float,
    rate_difference: Interval,
    stretched: Interval,
    shrunk: Interval,
    one_pass_norm: float,
    distances: Mapping[str, float],
    barrier: Interval,
    barrier_chance: float,
    relatives: Mapping[str, float],
) -> list[Outcome]:
    """DPO at a matched setting.

    norm, cosine: of DPO at SFT's rate, over and with SFT's. rate_difference: of accuracies.
    stretched: accuracy of DPO at SFT's norm. shrunk: accuracy of SFT at DPO's norm minus DPO's.
    one_pass_norm: over that after all passes. distances: of the accuracies of `dpo-one-pass` and
    `dpo` from the base's. relatives: {label: cosine with DPO at the same rate}.
    """
    lowest = min(relatives, key=relatives.__getitem__)
    one_pass, all_passes = distances["dpo-one-pass"], distances["dpo"]
    return [
        outcome(
            "norm of DPO at SFT's rate, over SFT's",
            norm,
            0.6 <= norm <= 1.6,
            norm < 0.4,
            form="{:.2f}",
        ),
        outcome(
            "DPO at SFT's rate, alike to SFT",
            cosine,
            -0.1 <= cosine <= 0.2,
            cosine > 0.4,
            about=f"chance ±{cosine_chance:.3f}",
        ),
        outcome(
            "its accuracy minus that of DPO at its own rate",
            rate_difference[0],
            rate_difference[0] <= -0.15,
            rate_difference[0] > 0,
            *rate_difference[1:],
            form="{:+.1%}",
        ),
        outcome(
            "DPO scaled to SFT's norm along its own direction",
            stretched[0],
            stretched[0] < 0.6,
            stretched[0] > 0.75,
            *stretched[1:],
            form="{:.1%}",
        ),
        outcome(
            "SFT scaled down to DPO's norm",
            shrunk[0],
            abs(shrunk[0]) <= 0.04,
            shrunk[0] <= -0.1,
            *shrunk[1:],
            form="{:+.1%}",
            about="minus DPO, on the problems that both answered",
        ),
        outcome(
            "DPO after at most one pass over its pairs",
            one_pass_norm,
            0.3 <= one_pass_norm <= 0.7 and one_pass < all_passes,
            one_pass_norm > 0.9,
            form="{:.2f}",
            about=f"accuracy {one_pass:.1%} from the base's, and {all_passes:.1%} after all passes",
        ),
        outcome(
            "barrier between RIFT and DPO at equal norm, loss of rollouts, above the chord",
            barrier[0],
            barrier[0] <= barrier_chance,
            barrier[0] > barrier_chance,
            *barrier[1:],
            about=f"chance {barrier_chance:.3f}",
        ),
        outcome(
            "IPO, SimPO, KTO and length-normalised DPO at the matched setting, alike to DPO",
            relatives[lowest],
            relatives[lowest] > 0.5,
            relatives[lowest] < 0.2,
            about=f"the lowest, {lowest}; the highest {max(relatives.values()):.3f}",
        ),
    ]


def of_strong_base(
    sft: Interval,
    rft: float,
    base: float,
    losses: Mapping[str, float],
    dpo: Interval,
    forced: Interval,
) -> list[Outcome]:
    """The base, the style and the strong base.

    sft, rft, base: accuracies from the strong base, and its own. losses: of accuracy against it,
    of SFT and RFT. dpo: accuracy of DPO at its own rate minus the strong base's. forced: SFT minus
    the strong base forced into the teacher's opening.
    """
    return [
        outcome(
            "accuracy on the test problems of SFT and RFT trained from the *strong* base",
            sft[0],
            all(0.6 <= value <= 0.9 for value in (sft[0], rft)) and min(losses.values()) >= 0.08,
            min(losses.values()) < 0.03,
            *sft[1:],
            form="{:.1%}",
            about=f"SFT; RFT {rft:.1%}; strong base {base:.1%}",
        ),
        outcome(
            "the same of DPO at its own rate",
            dpo[0],
            abs(dpo[0]) <= 0.02,
            dpo[0] < -0.05,
            *dpo[1:],
            form="{:+.1%}",
            about="minus the strong base",
        ),
        outcome(
            "SFT minus the strong base forced into the teacher's opening",
            forced[0],
            abs(forced[0]) <= 0.06,
            abs(forced[0]) > 0.06,
            *forced[1:],
            form="{:+.1%}",
        ),
    ]


def of_variants(
    sequence: float, printed: Interval, naive: Interval, clipped: float, topr: float
) -> list[Outcome]:
    """Variants of the losses.

    sequence, topr: cosines with RFT. printed: accuracy of RIFT as printed with λ = .9 minus SFT's.
    naive: accuracy. clipped: cosine of both forms of Offline GRPO.
    """
    return [
        outcome(
            "RIFT at the level of sequences, alike to RFT",
            sequence,
            sequence > 0.99,
            sequence < 0.95,
        ),
        outcome(
            "RIFT as printed with λ = .9",
            printed[0],
            printed[0] <= -0.05,
            printed[1] <= 0 <= printed[2],
            *printed[1:],
            form="{:+.3f}",
            about="minus SFT",
        ),
        outcome(
            r"naive $r \log \pi$",
            naive[0],
            naive[0] < 0.1,
            naive[0] >= 0.1,
            *naive[1:],
            about="accuracy",
        ),
        outcome(
            "Offline GRPO as printed and clipped, alike",
            clipped,
            0.3 <= clipped <= 0.8,
            clipped > 0.95,
        ),
        outcome("TOPR, alike to RFT", topr, topr > 0.8, topr < 0.5),
    ]


def of_on_policy(
    norm: float,
    about_norm: str,
    cosine: float,
    rft: Interval,
    online: float,
) -> list[Outcome]:
    """On-policy data.

    norm: of SFT on self-generated rollouts, over that on the teacher's. cosine: of the two. rft:
    accuracy of RFT on self-generated rollouts minus the base's. online: cosine of online GRPO with
    SFT.
    """
    value, low, high = rft
    return [
        outcome(
            "norm of SFT on the base's own rollouts, over SFT's on the teacher's",
            norm,
            norm < 0.5,
            norm > 0.8,
            form="{:.2f}",
            about=about_norm,
        ),
        outcome(
            "SFT on own and on the teacher's rollouts, alike",
            cosine,
            cosine < 0.2,
            cosine > 0.5,
        ),
        outcome(
            "accuracy of RFT on the base's own rollouts minus the base's",
            100 * value,
            0 <= value <= 0.06,
            value <= -0.05,
            100 * low,
            100 * high,
            form="{:+.1f}",
            about="in points",
        ),
        outcome("online GRPO, alike to SFT", online, abs(online) <= 0.1, abs(online) > 0.1),
    ]


def of_interventions(
    kept_part: Interval, removed_part: Interval, late_over_early: Interval
) -> list[Outcome]:
    """Interventions.

    kept_part: accuracy of Offline GRPO's part along SFT minus that of the whole. removed_part: of
    DPO without its part along SFT minus DPO's. late_over_early: ratio of divergences of the halves
    of SFT's layers.
    """
    return [
        outcome(
            "Offline GRPO with only its part along SFT kept, accuracy against the whole",
            kept_part[0],
            abs(kept_part[0]) <= 0.08,
            abs(kept_part[0]) > 0.08,
            *kept_part[1:],
            form="{:+.3f}",
        ),
        outcome(
            "DPO with its part along SFT removed",
            removed_part[0],
            abs(removed_part[0]) <= 0.01,
            abs(removed_part[0]) > 0.01,
            *removed_part[1:],
            form="{:+.3f}",
            about="accuracy minus DPO's",
        ),
        outcome(
            "late half of SFT's layers kept alone, KL to the base over that of the early half",
            late_over_early[0],
            late_over_early[0] > 1,
            late_over_early[0] < 0.7,
            *late_over_early[1:],
            form="{:.2f}",
        ),
    ]


def of_gradient_plane(
    cosine: Interval,
    noise_free: float,
    sft_rft: Interval,
    sft_dpo: Interval,
    exact_sft_dpo: float,
    errors: Mapping[int, float],
) -> list[Outcome]:
    """The gradient plane.

    cosine: of the mean gradients over correct and over incorrect rollouts. sft_rft, sft_dpo:
    cosines predicted by the three numbers; exact_sft_dpo: by the exact gradients. errors: by step,
    the largest difference between prediction and measurement.
    """
    first_step, last_step = min(errors), max(errors)
    first, last = errors[first_step], errors[last_step]
    return [
        outcome(
            "cosine of the mean gradients over correct and over incorrect rollouts,"
            " $\\cos(g_+, g_-)$",
            cosine[0],
            cosine[0] > 0.7,
            cosine[0] < 0.3,
            *cosine[1:],
            about=f"{noise_free:.3f} without sampling noise",
        ),
        outcome(
            "predicted cosine of SFT and RFT at step 0",
            sft_rft[0],
            sft_rft[0] > 0.97,
            sft_rft[0] < 0.9,
            *sft_rft[1:],
            form="{:.4f}",
        ),
        outcome(
            "predicted cosine of SFT and DPO at step 0",
            sft_dpo[0],
            -0.2 <= sft_dpo[0] <= 0.4,
            not -0.2 <= sft_dpo[0] <= 0.4,
            *sft_dpo[1:],
            about=f"{exact_sft_dpo:.3f} from the exact gradients",
        ),
        outcome(
            "largest difference between prediction and measurement over the pairs of SFT, RFT,"
            " RIFT and DPO: at step 1, at the end",
            last,
            first < 0.15 and last > 0.1,
            last < 0.05,
            about=f"at the end; {first:.3f} at step {first_step}",
        ),
    ]
