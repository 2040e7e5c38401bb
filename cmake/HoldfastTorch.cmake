# SPDX-License-Identifier: Apache-2.0
#
# Finds libtorch for the runner, the only box that includes it. Order: -DTorch_DIR (<prefix>/share/cmake/Torch), CMAKE_PREFIX_PATH, the
# torch of the active Python environment (VIRTUAL_ENV or CONDA_PREFIX), the system's (Debian: libtorch-dev). Sets
#   HOLDFAST_TORCH_VERSION    as torch/version.h spells it; part of every numerics class
#   HOLDFAST_TORCH_INCLUDES   for the runner alone
# and the target holdfast_torch (libraries only). Torch's own package files are not used: a CUDA build of torch would ask for the CUDA
# toolkit and edit compiler flags, and the runner includes no CUDA header; beside a second libtorch they mix the two.
set(HOLDFAST_TORCH_HELP "Holdfast needs libtorch (1.13 or newer). Get it one of these ways:
    apt install libtorch-dev                                   (Debian, CPU)
    pip install torch, then configure inside that virtual environment
    https://pytorch.org, then configure with -DTorch_DIR=<libtorch>/share/cmake/Torch")

# The directory that holds include/ and lib/ of a libtorch, or "" for the system's.
function(holdfast_torch_prefix out)
  set(candidates "")
  if(Torch_DIR)
    list(APPEND candidates "${Torch_DIR}/../../..")
  endif()
  foreach(dir ${CMAKE_PREFIX_PATH})  # torch.utils.cmake_prefix_path is <prefix>/share/cmake
    list(APPEND candidates "${dir}" "${dir}/../..")
  endforeach()
  foreach(env $ENV{VIRTUAL_ENV} $ENV{CONDA_PREFIX})
    file(GLOB found "${env}/lib/python3*/site-packages/torch")
    list(APPEND candidates ${found})
  endforeach()
  foreach(dir ${candidates})
    if(EXISTS "${dir}/include/ATen/ATen.h")
      get_filename_component(dir "${dir}" ABSOLUTE)
      set(${out} "${dir}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${out} "" PARENT_SCOPE)
endfunction()

function(holdfast_torch_version out)
  foreach(name torch/csrc/api/include/torch/version.h torch/headeronly/version.h)
    if(EXISTS "${ARGN}/${name}")
      file(STRINGS "${ARGN}/${name}" lines REGEX "\"[0-9]+\\.[0-9]+\\.[0-9]+[^\"]*\"")
      if(lines MATCHES "\"([0-9][^\"]*)\"")
        set(${out} "${CMAKE_MATCH_1}" PARENT_SCOPE)
        return()
      endif()
    endif()
  endforeach()
  message(FATAL_ERROR "libtorch at ${ARGN}: no version in torch/version.h. ${HOLDFAST_TORCH_HELP}")
endfunction()

function(holdfast_find_torch)
  holdfast_torch_prefix(prefix)
  if(prefix)
    set(where PATHS "${prefix}" NO_DEFAULT_PATH)
  endif()
  find_path(HOLDFAST_TORCH_INCLUDE ATen/ATen.h ${where} PATH_SUFFIXES include)
  foreach(part torch torch_cpu c10 torch_cuda c10_cuda)
    find_library(HOLDFAST_LIB_${part} ${part} ${where} PATH_SUFFIXES lib)
  endforeach()
  if(NOT HOLDFAST_TORCH_INCLUDE OR NOT HOLDFAST_LIB_torch OR NOT HOLDFAST_LIB_torch_cpu OR NOT HOLDFAST_LIB_c10)
    message(FATAL_ERROR "libtorch was not found. ${HOLDFAST_TORCH_HELP}")
  endif()
  set(config "${prefix}/share/cmake/Torch/TorchConfig.cmake")
  if(EXISTS "${config}")
    file(STRINGS "${config}" old_abi REGEX "_GLIBCXX_USE_CXX11_ABI=0")
    if(old_abi)
      message(FATAL_ERROR "The libtorch at ${prefix} was built with the old C++ ABI (_GLIBCXX_USE_CXX11_ABI=0), which the rest of "
                          "Holdfast is not. Use one with the new ABI (pip's torch from 2.7 on, or libtorch 'cxx11 ABI').")
    endif()
  endif()
  holdfast_torch_version(version "${HOLDFAST_TORCH_INCLUDE}")
  add_library(holdfast_torch INTERFACE)
  # libstdc++ first: pip's libtorch exports parts of its own (std::filesystem), which must not be found before the real ones.
  target_link_libraries(holdfast_torch INTERFACE "-Wl,--no-as-needed,-lstdc++,--as-needed"
                        ${HOLDFAST_LIB_torch} ${HOLDFAST_LIB_torch_cpu} ${HOLDFAST_LIB_c10})
  set(cuda "CPU only")
  if(HOLDFAST_LIB_torch_cuda)
    # Nothing refers to it by symbol: its operators register themselves when it is loaded.
    target_link_libraries(holdfast_torch INTERFACE "-Wl,--no-as-needed,${HOLDFAST_LIB_torch_cuda},${HOLDFAST_LIB_c10_cuda},--as-needed")
    set(cuda "with CUDA")
  endif()
  message(STATUS "libtorch: ${version}, ${cuda} (${HOLDFAST_LIB_torch})")
  set(HOLDFAST_TORCH_VERSION "${version}" CACHE INTERNAL "")
  set(HOLDFAST_TORCH_INCLUDES "${HOLDFAST_TORCH_INCLUDE};${HOLDFAST_TORCH_INCLUDE}/torch/csrc/api/include" CACHE INTERNAL "")
endfunction()

holdfast_find_torch()
