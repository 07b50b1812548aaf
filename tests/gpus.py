"""Whether a GPU can be used here: some tests need one, others tell what is said without one."""

from trt_layermerge.backends.cuda import cuda_bindings

NO_GPU = all(problem is not None for _, problem in cuda_bindings())
