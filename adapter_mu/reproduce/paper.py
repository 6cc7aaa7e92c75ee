"""The numbers the paper reports, as it prints them.

Nudity scores and shares are percent of 142 pictures of SD-v1-4 (so steps of 0.70); FID and CLIP score are on COCO 10K.
Source: "Meta-Unlearning on Diffusion Models", Tables 1, 2, 4 and 5, and Appendix F.
"""

from __future__ import annotations

UNLEARNED, META = "unlearned", "meta-unlearned"
ROWS = {
    "ESD-u-1": "esd-u-1",
    "ESD-u-3": "esd-u-3",
    "ESD-f-3": "esd-f-3",
    "SDD": "sdd",
    "UCE": "uce",
    "RECE": "rece",
}
STEPS = (50, 100, 200, 300)
COLUMNS = [("none", 0), *((attack, step) for attack in ("hrm-m", "hrm-s", "clean") for step in STEPS)]
BASE_SCORE = 97.18

# One line a model, the cells in the order of COLUMNS.
_TABLE1 = """
ESD-u-1 unlearned      6.34 19.01 21.83 30.28 34.51 23.24 24.65 45.07 53.52 11.27 13.38 12.68 14.79
ESD-u-1 meta-unlearned 0.00  8.45 13.38 23.94 26.06  4.23 12.68 30.28 38.03  2.82  2.11  4.23  4.23
ESD-u-3 unlearned      3.52 26.76 38.73 36.62 33.80 23.24 28.17 31.69 35.92  5.63  4.93  7.75  6.34
ESD-u-3 meta-unlearned 0.00  3.52 19.01 26.76 26.76  8.45 18.31 20.42 26.06  2.11  2.82  4.23  2.82
ESD-f-3 unlearned      6.34 32.39 56.34 60.56 55.63 47.89 51.41 40.14 59.86 12.68 16.90 18.31 14.79
ESD-f-3 meta-unlearned 0.00  2.11 26.06 38.03 33.10  5.63 18.31 24.65 35.92  3.52  4.93  5.63  5.63
SDD     unlearned      1.41 33.10 57.04 52.11 54.23 42.96 50.70 53.52 53.52 14.08 16.20 17.61 18.31
SDD     meta-unlearned 0.00 20.42 45.07 42.25 48.59 15.49 28.17 31.69 35.21  2.11  5.63  6.34  7.75
UCE     unlearned     16.90 36.62 44.37 47.89 36.62 28.17 34.51 40.14 57.75 23.94 25.35 23.24 26.76
UCE     meta-unlearned 1.41 24.65 28.17 30.28 25.35 18.31 19.01 21.13 42.96  4.93  5.63  4.93  4.23
RECE    unlearned      4.93 16.20 19.72 22.54 22.54 11.27 14.79 17.61 22.54  6.34  9.86  7.04  7.75
RECE    meta-unlearned 4.23  7.04 10.56 15.49 13.38  5.63  8.45 13.38 15.49  4.23  5.63  4.93  5.63
"""


def _parsed(text: str) -> dict[tuple[str, str], list[float]]:
    lines = (line.split() for line in text.strip().splitlines())
    return {(row, arm): [float(cell) for cell in cells] for row, arm, *cells in lines}


TABLE1 = _parsed(_TABLE1)

# Table 2: (FID, CLIP score) before any attack.
QUALITY_OF_BASE = (16.71, 31.09)
TABLE2 = {
    UNLEARNED: {
        "ESD-u-1": (16.01, 30.32),
        "ESD-u-3": (20.52, 29.65),
        "ESD-f-3": (21.38, 30.00),
        "SDD": (21.12, 29.27),
        "UCE": (17.59, 31.01),
        "RECE": (17.47, 30.70),
    },
    META: {
        "ESD-u-1": (16.98, 30.20),
        "ESD-u-3": (19.98, 29.86),
        "ESD-f-3": (18.54, 29.93),
        "SDD": (21.78, 30.61),
        "UCE": (19.20, 31.25),
        "RECE": (18.19, 30.23),
    },
}

# Table 4, Meta ESD-u-1: gamma_1 : gamma_2 -> before and after the attack, trained for 300 and for 1000 steps.
TABLE4 = {"1:1": (10.56, 25.35, 6.34, 21.83), "1:10": (12.68, 22.54, 7.04, 21.13), "10:1": (8.45, 28.17, 6.34, 22.54)}
# Table 5, Meta ESD-u-3: M -> FID and CLIP score before the attack, score after it. The paper's M = 1 quality is that
# of its plainly unlearned ESD-u-3 in Table 2, while the score is the meta-unlearned one's in Table 1.
TABLE5 = {1: (20.52, 29.65, 26.76), 3: (19.72, 30.36, 28.17), 5: (17.92, 30.98, 32.39)}
# Appendix F, Meta ESD-u-3: the simulated attacker's update rule -> score after the attack.
RULES = {"sgd": 26.76, "momentum": 26.06, "adamw": 25.35}
