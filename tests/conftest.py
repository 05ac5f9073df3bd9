"""Before anything imports Triton: its interpreter runs the kernels here, on CPU tensors. No torch at import."""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["NORM_FUSION_FORCE_TRITON"] = "1"
