// Kernels' names as NVRTC takes them, spelled by the host's compiler.
#pragma once
#include <string>

template <class A> const char *lpt_spelled() { return __PRETTY_FUNCTION__; }

inline std::string
lpt_type_name(std::string spelled) {  // "... [with A = float]", "... [A = float]"
    const size_t from = spelled.find("A = ") + 4;
    return spelled.substr(from, spelled.rfind(']') - from);
}

// What stands between the angle brackets: types, and at most one number, first or last.
template <class A, class... Rest> std::string lpt_arguments() {
    return (lpt_type_name(lpt_spelled<A>()) + ... + ("," + lpt_type_name(lpt_spelled<Rest>())));
}
template <int N, class... Rest> std::string lpt_arguments() {
    return std::to_string(N) + "," + lpt_arguments<Rest...>();
}
template <class A, int N> std::string lpt_arguments() {
    return lpt_arguments<A>() + "," + std::to_string(N);
}

// A kernel that is named but not compiled: no more than its type is asked for.
template <class Pointer, class Name> struct lpt_named {
    Name name;
};
template <class Pointer, class Name> lpt_named<Pointer, Name> lpt_name(Name name) { return {name}; }

#define LPT_KERNEL(kernel, ...)                                                                    \
    lpt_name<decltype(&kernel<__VA_ARGS__>)>(                                                      \
        [] { return #kernel "<" + lpt_arguments<__VA_ARGS__>() + ">"; })
