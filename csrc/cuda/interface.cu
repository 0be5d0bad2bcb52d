#include "../dmlfast_cuda.h"
#include "device.h"

#ifndef DML_INTERFACE
#define DML_INTERFACE 0
#endif
uint32_t dml_cuda_interface(void) {
  return DML_INTERFACE;
}

const char* dml_cuda_error(int status) {
#ifdef DML_EMULATED
  return status ? "emulated" : "none";
#else
  return cudaGetErrorString(cudaError_t(status));
#endif
}
