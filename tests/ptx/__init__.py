"""The CUDA kernels, executed without a GPU: an interpreter of the PTX that nvcc makes of them.

The objects of the CUDA library are taken as they are. Their host code runs; each launch is caught where the CUDA
runtime would take it (native.cpp), and the kernel is run from its PTX, on the real grid and arguments, for all threads
at once. So whatever launches a kernel with <<<...>>> or cudaLaunchKernel runs here; nothing in csrc/ knows of it.

As a tool (needs nvcc, and the library: `make setup A2S_CUDA=ON`):

    python tools/dev/ptx_report.py --op interp --maps 8x21x65 --size 513 513 --dtype bfloat16 --layout channels_last

In Python:

    from tests.ptx import device
    ptx = device.operators()                    # builds what has changed
    y = ptx.operator("interp", x, 513, 513)     # the CUDA implementation of torch.ops.a2s.interp, on CPU tensors

An operator raises `memory.Fault` where a kernel reads or writes outside of the elements of its arguments and results,
misaligned or uninitialised memory (shared memory, too), where threads race in shared or global memory, wait at
different barriers, shuffle from a lane that is not there, or leave a part of a result unwritten.

From the PTX to a result: parse.py reads it; program.py makes Python of it, a function for each basic block, with what
instructions.py writes for each instruction and arithmetic.py computes; machine.py runs the blocks of a grid, group.py
the threads that are at one instruction; memory.py and shared.py are the memories, with their traps; counts.py counts;
predict.py bounds the time, with registers and occupancy from ptxas.py. build.py compiles, device.py is all of it
together. The library and its PTX are in build/, and what is linked of them in build/ptx. While kernels are changed,
`TORCH_CUDA_ARCH_LIST=9.0+PTX make setup A2S_CUDA=ON` compiles them for one architecture alone.

budgets.csv holds what each kernel may cost (budgets.py tells of its columns; `ptx_report.py --table --update` writes
it anew). An instruction that instructions.py does not know raises `UnknownInstruction`: add it there.
"""
