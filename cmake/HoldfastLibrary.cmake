# SPDX-License-Identifier: Apache-2.0
#
# holdfast_library(NAME SRCS a.cc b.cc DEPS lib...)   one box of docs/architecture = one static library + a link test.
# The link test links the whole archive with only its declared dependencies into an empty main, so that a hidden
# dependency is a link error and not a surprise.
function(holdfast_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_library(holdfast_${name} STATIC ${A_SRCS})
  target_include_directories(holdfast_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(holdfast_${name} PUBLIC ${A_DEPS})
  if(HOLDFAST_TESTS)
    add_executable(link_test_${name} ${CMAKE_SOURCE_DIR}/cmake/link_test_main.cc)
    set_target_properties(link_test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/link_tests)
    target_link_libraries(link_test_${name} PRIVATE "$<LINK_LIBRARY:WHOLE_ARCHIVE,holdfast_${name}>")
    add_test(NAME link.${name} COMMAND link_test_${name})
  endif()
endfunction()

# holdfast_test(NAME SRCS a_test.cc DEPS lib... [LABELS l])   one gtest executable, every TEST a ctest test. Those with the label
# "threaded" are what preset tsan builds and runs: threads of our own, no libtorch.
function(holdfast_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  add_executable(${name} ${A_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gtest_main GTest::gmock)
  target_compile_definitions(${name} PRIVATE
    HOLDFAST_SOURCE_DIR="${CMAKE_SOURCE_DIR}" HOLDFAST_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
  if("threaded" IN_LIST A_LABELS)
    if(NOT TARGET threaded_tests)
      add_custom_target(threaded_tests)
    endif()
    add_dependencies(threaded_tests ${name})
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}")
endfunction()
