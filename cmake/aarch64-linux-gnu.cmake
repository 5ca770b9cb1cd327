# Cross-compiling to ARM64 Linux with Debian's g++-aarch64-linux-gnu; CMAKE_SYSROOT says where that system's files are.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
