"""Numbers of the paper (arXiv:2606.23740) that several pages and the verdict set beside ours. Outside the flow of data: nothing is computed from them."""

# Cosines of the updates of two objectives, all modules stacked. The text gives "about .74" for Offline GRPO and .057 to .065
# for DPO, which is here the middle of that range.
COSINES = {
    ("sft", "rft"): 0.977,
    ("sft", "rift"): 0.967,
    ("rft", "rift"): 0.969,
    ("sft", "dft"): 0.572,
    ("dft", "rift"): 0.536,
    **dict.fromkeys(
        [("sft", "offline-grpo"), ("rft", "offline-grpo"), ("rift", "offline-grpo")], 0.74
    ),
    **dict.fromkeys([("sft", "dpo"), ("rft", "dpo"), ("rift", "dpo")], 0.061),
}
