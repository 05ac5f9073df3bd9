"""Before anything imports Triton: its interpreter runs the kernels here, on CPU tensors. Imports no torch itself."""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["NORM_FUSION_FORCE_TRITON"] = "1"
sys.path.append(str(Path(__file__).parent / "kernels"))  # aot, accuracy
