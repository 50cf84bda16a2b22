# `cmake --install` puts headers, the static library and a package file where find_package(fovea) finds them.
include(CMakePackageConfigHelpers)
install(TARGETS fovea EXPORT foveaTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/fovea/fovea.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea)
foreach(room IN LISTS FOVEA_ROOMS)
  install(DIRECTORY src/${room} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea
          FILES_MATCHING PATTERN "*.h" PATTERN "*-inl.h" EXCLUDE)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/include/fovea/${room}.h)
    install(FILES include/fovea/${room}.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea)
  endif()
endforeach()
install(EXPORT foveaTargets NAMESPACE fovea:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
configure_package_config_file(cmake/foveaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/foveaConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/foveaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/foveaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/foveaConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
