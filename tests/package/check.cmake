# cmake -DBUILD=... -DSOURCE=... -DCOMPILER=... -DGENERATOR=... -P check.cmake: installs the build, builds examples/attention.cc with find_package, runs it.
set(work ${BUILD}/package_test)
file(REMOVE_RECURSE ${work})
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/installed)
run(${CMAKE_COMMAND} -S ${SOURCE}/tests/package -B ${work}/build -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${work}/installed
    -DCMAKE_CXX_COMPILER=${COMPILER} -DEXAMPLE=${SOURCE}/examples/attention.cc)
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/attention)
