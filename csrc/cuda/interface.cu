#include "../dmlfast_cuda.h"
#include "device.h"

const char* dml_cuda_error(int status) {
#ifdef DML_EMULATED
  return status ? "emulated" : "none";
#else
  return cudaGetErrorString(cudaError_t(status));
#endif
}
