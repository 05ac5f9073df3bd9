"""Judges what is installed: PyTorch, Triton, compilers, peers, and what the environment's variables change."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

import norm_fusion
from norm_fusion.backends import CUTE, PEERS
from norm_fusion.doctor.facts import BENCH, REPORT, SECOND_OPINION, Compiler
from norm_fusion.doctor.finding import Finding, dotted, limited, missing, ok, release, unknown
from norm_fusion.doctor.probe import Step

OLDEST_TORCH = (2, 9)
OLDEST_TRITON, NEWEST_TRITON = (3, 6), (3, 7)  # what the kernels are compiled with in the tests
SWAPS_RMS_NORM = (2, 13)
DISABLES = ("", "0", "false", "no", "off", "n")


def judge_python() -> Finding:
    return ok("Python", f"{platform.python_version()}, norm-fusion {norm_fusion.__version__}, {sys.platform}")


def judge_torch(installed: str | None, step: Step | None, gpu_here: bool) -> Finding:
    """`gpu_here`: the driver shows an NVIDIA card, whatever torch thinks of it."""
    if step is None or not step.ok:
        seen = step.seen if step else "not tried"
        if installed is None:
            return missing(
                "PyTorch",
                "not installed" if "No module named 'torch'" in seen else seen,
                "every contestant runs in PyTorch: nothing can be measured",
                "pip install 'torch>=2.9'" + (", a CUDA build" if gpu_here else ""),
            )
        return missing(
            "PyTorch",
            f"{installed} is installed and cannot be imported: {seen}",
            "every contestant runs in PyTorch: nothing can be measured",
            "install it anew in a fresh environment: pip install --force-reinstall torch",
        )
    version, cuda, hip = (step.facts.get(name) for name in ("version", "cuda", "hip"))
    built = f"built for CUDA {cuda}" if cuda else f"built for ROCm {hip}" if hip else "built without CUDA"
    seen = f"{version}, {built}"
    if hip:
        return limited(
            "PyTorch",
            seen,
            "the lab measures NVIDIA GPUs: on this build nothing of it was ever tested",
            "install a CUDA build, or use --device cpu",
        )
    number = release(version)
    if number is None:
        return unknown("PyTorch", seen, "its version cannot be read: whether F.rms_norm is fused is not known")
    if number < OLDEST_TORCH:
        return limited(
            "PyTorch",
            seen,
            "F.rms_norm is one fused CUDA kernel only since 2.9: before, torch-native is about eight kernels",
            "pip install 'torch>=2.9'",
        )
    if gpu_here and not cuda:
        return limited(
            "PyTorch",
            seen,
            "this machine has an NVIDIA GPU that this build cannot use",
            "install a CUDA build of torch",
        )
    return ok("PyTorch", seen)


def judge_triton(installed: str | None, ptxas: str | None, linux: bool) -> Finding:
    if installed is None:
        return missing(
            "Triton",
            "not installed" if linux else f"not installed: it is made for Linux, this is {sys.platform}",
            "the fused kernels cannot run: their rows are 'unavailable'",
            "pip install 'triton>=3.6'" if linux else "use Linux, or its subsystem on Windows",
        )
    number = release(installed)
    assembler = f", ptxas {ptxas}" if ptxas else ", its ptxas does not answer"
    tested = f"{dotted(OLDEST_TRITON)} to {dotted(NEWEST_TRITON)}"
    if number is None:
        return unknown("Triton", installed + assembler, f"its version cannot be read; tested are {tested}")
    if number < OLDEST_TRITON:
        return limited(
            "Triton",
            installed + assembler,
            f"older than {dotted(OLDEST_TRITON)}, which the kernels ask for: they may not compile",
            "pip install 'triton>=3.6'",
        )
    if number > NEWEST_TRITON:
        return limited(
            "Triton",
            installed + assembler,
            f"newer than what the kernels are tested with ({tested}): every result is verified, its speed may differ",
            f"for figures that compare: pip install 'triton=={dotted(NEWEST_TRITON)}.*'",
        )
    return ok("Triton", installed + assembler)


def judge_kernels(step: Step | None, device: str | None, capability: str | None = None) -> Finding:
    """Our two kernels, really compiled (or interpreted, on a CPU) and compared on a small input."""
    name = "fused kernels"
    if step is None:
        return missing(name, "not tried: no device to try them on, or an earlier probe ended the process")
    if not step.ok:
        return missing(
            name,
            step.seen,
            "rows of the Triton profiles will be 'unavailable' or 'failed'; PyTorch's own are measured all the same",
            "mend what the message names; the findings on Triton and the compilers may say how",
        )
    if device == "cpu":
        return limited(
            name,
            f"correct in the interpreter ({step.facts.get('resolved')})",
            "on a CPU the Triton profiles are 'checked', never timed",
            "measure them on a machine with an NVIDIA GPU",
        )
    compiled = f"compiled for {capability}" if capability else "compiled"
    return ok(name, f"{compiled} and right on a small input ({step.facts.get('resolved')})")


def judge_compiler(compiler: Compiler, language: str, needed_for: str, wanted: bool, headers: bool) -> Finding:
    """`wanted`: the device asked for needs it. `headers`: Python.h is there."""
    name, variable = f"{language} compiler", compiler.variable
    found = compiler.named or compiler.on_path
    if not wanted:
        return ok(name, f"{found or 'none'} (not needed on this device)")
    without = f"without it no {needed_for}: such rows are 'unavailable' or 'failed'"
    if compiler.value and not compiler.named:
        return missing(
            name,
            f"{variable}={compiler.value!r} names no program",
            f"{variable} is taken as the name of one program, whatever PATH has; {without}",
            f"unset {variable}, or set it to a compiler's path, without arguments",
        )
    if found is None:
        install = "gcc" if variable == "CC" else "g++"
        return missing(
            name,
            f"none on PATH, and {variable} is not set",
            without,
            f"install one (Debian: apt-get install {install}) or name it in {variable}",
        )
    if not headers:
        return missing(
            name,
            f"{found}, but Python.h is not there",
            f"what is compiled includes Python's headers; {without}",
            f"install them (Debian: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-dev)",
        )
    return ok(name, found + (f" ({variable})" if compiler.named else ""))


def judge_native(torch: str | None, versions: Mapping[str, str]) -> Finding:
    """Is torch-native PyTorch's own RMSNorm kernel? From 2.13 on two packages together change it."""
    name, number = "torch-native", release(torch)
    there = [f"{package} {versions[package]}" for package in CUTE if package in versions]
    if len(there) < len(CUTE):
        return ok(name, "PyTorch's own kernels")
    if number is None:
        return unknown(name, f"{' and '.join(there)} are installed; torch's version is not known")
    if number < SWAPS_RMS_NORM:
        return ok(name, f"PyTorch's own kernels ({' and '.join(there)} change them from torch 2.13 on)")
    return limited(
        name,
        f"torch {dotted(number)} with {' and '.join(there)}",
        "eager F.rms_norm on CUDA is then a vendored QuACK kernel: this baseline is another one than elsewhere",
        "keep these two packages in an environment of their own, and compare with runs made without them",
    )


def judge_peers(versions: Mapping[str, str]) -> Finding:
    there = [f"{name} {versions[name]}" for name in PEERS if name in versions]
    return ok("peer libraries", ", ".join(there) if there else "none installed (optional)")


def judge_extras(versions: Mapping[str, str]) -> list[Finding]:
    lacking = [name for name in BENCH if name not in versions]
    bench = ok("extra: bench", "complete")
    if lacking:
        bench = missing(
            "extra: bench",
            f"without {', '.join(lacking)}",
            "the measuring process imports these: a run fails",
            "pip install 'norm-fusion[bench]'",
        )
    lacking = [name for name in REPORT if name not in versions]
    report = ok("extra: report", "complete")
    if lacking:
        report = limited(
            "extra: report",
            f"without {', '.join(lacking)}",
            "runs are measured, kept and shown; `norm-fusion report` cannot make their page",
            "pip install 'norm-fusion[report]'",
        )
    second = versions.get(SECOND_OPINION)
    return [bench, report, ok("second opinion", f"NVBench ({SECOND_OPINION}) {second or 'not installed (optional)'}")]


def judge_variables(variables: Mapping[str, str], device: str | None) -> Finding:
    """Environment variables that change what is measured; those that switch something off count too."""
    says = {
        "CUDA_INJECTION64_PATH": "a profiler is attached: it may take CUPTI, and it slows launches",
        "CUDA_LAUNCH_BLOCKING": "each launch waits for its kernel: the host series is wrong",
        "LD_PRELOAD": "a library is put before all others in the measured process",
        "NORM_FUSION_FORCE_TRITON": "CPU tensors go to Triton's interpreter; a run sets it where it is needed",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "each output is allocated by the driver: calls wait, graphs fail",
        "TORCHDYNAMO_DISABLE": "torch-compile measures the call without compiling it",
        "TORCH_COMPILE_DISABLE": "torch-compile measures the call without compiling it",
        "TRITON_DEBUG": "kernels are compiled with checks in them",
        "TRITON_INTERPRET": "Triton's kernels are interpreted, on a GPU too",
    }
    on = [name for name, value in variables.items() if value.strip().lower() not in DISABLES and name in says]
    if device == "cpu":  # a run on a CPU sets these itself
        on = [name for name in on if name not in ("NORM_FUSION_FORCE_TRITON", "TRITON_INTERPRET")]
    if not on:
        return ok("variables", "none set that changes a measurement")
    return limited(
        "variables",
        ", ".join(f"{name}={variables[name]}" for name in on),
        "; ".join(dict.fromkeys(says[name] for name in on)),
        f"unset {' '.join(on)}",
    )
