"""`python -m a2s_repro.info`: versions, build settings, and loaded native libraries."""

import platform

import torch

import a2s_repro
from a2s_repro.ops import _native


def info() -> dict[str, str]:
    """Facts for a bug report, as name -> value."""
    facts = {
        "a2s_repro": a2s_repro.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads)",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    built = _native.build_facts() or {"libraries": f"none: {_native.REMEDY}"}
    facts |= {f"built {name.replace('_', ' ')}": value for name, value in built.items() if value}
    facts["loaded native operators for"] = ", ".join(sorted(_native.loaded_devices() - {"meta"})) or "nothing"
    facts |= {f"not loaded lib{name}.so": problem for name, problem in _native.problems.items()}
    return facts


def main() -> None:
    for name, value in info().items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
