# SPDX-License-Identifier: Apache-2.0
#
# Sets HOLDFAST_HAVE_CUDA. Without a CUDA toolkit the build goes on without the .cu files and says so.
set(HOLDFAST_HAVE_CUDA OFF)
if(NOT HOLDFAST_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 90-real 100-real 120-real 120-virtual)  # A100 to GB10 (sm_121 runs sm_120), later ones from PTX
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know yet that nvcc has C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(HOLDFAST_HAVE_CUDA ON)
    message(STATUS "CUDA kernels: on (${CMAKE_CUDA_COMPILER_VERSION})")
  elseif(HOLDFAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HOLDFAST_CUDA=ON, but no CUDA compiler was found. Install the CUDA toolkit, or use -DHOLDFAST_CUDA=AUTO.")
  else()
    message(STATUS "CUDA kernels: off (no CUDA toolkit found); the CPU build goes on without the .cu files")
  endif()
endif()
