// Names that the libraries export, for C.
#pragma once

#if defined(_WIN32)
#define LPT_API extern "C" __declspec(dllexport)
#else
#define LPT_API extern "C" __attribute__((visibility("default")))
#endif
