// The loops of the formats that are no grid: codebooks and posits. Compiled once per instruction
// set, with LPT_CODEBOOKS naming the result.
#include "loop.h"
#include "search.h"

namespace {

template <class T, int DEPTH, int MODE, bool ENDS>
void table_loop(const T *x, T *y, int64_t first, int64_t last, const lpt_table<T> &table,
                const lpt_rule &rule) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_table<T> t = table;  // local copies: y may not alias them
    const lpt_odds odds = lpt_make_odds(rule.bits);
    lpt_each<MODE>(x, y, first, last, rule, [&](U u, uint32_t random) {
        return lpt_round_to<T, DEPTH, MODE, ENDS>(u, t, odds, random);
    });
}

template <class T>
void table(const T *x, T *y, int64_t first, int64_t last, const lpt_table<T> &t,
           const lpt_rule &rule) {
    if (rule.mode >= LPT_STOCHASTIC)
        return lpt_with_mode(rule.mode, [&](auto mode) {
            enum {
                MODE = decltype(mode)::value >= LPT_STOCHASTIC ? decltype(mode)::value
                                                               : LPT_STOCHASTIC
            };
            if (lpt_search_drawn<MODE>(x, y, first, last, t, rule))
                return;
            (lpt_has_ends(t) ? table_loop<T, -1, MODE, true>
                             : table_loop<T, -1, MODE, false>)(x, y, first, last, t, rule);
        });
    if (lpt_search(x, y, first, last, t))
        return;
    switch (t.depth) {
    case 0: return table_loop<T, 0, LPT_NEAREST, false>(x, y, first, last, t, rule);
    case 1: return table_loop<T, 1, LPT_NEAREST, false>(x, y, first, last, t, rule);
    default: return table_loop<T, -1, LPT_NEAREST, false>(x, y, first, last, t, rule);
    }
}

template <class T, int MODE>
void posit_loop(const T *x, T *y, int64_t first, int64_t last, const lpt_posit &posit,
                const lpt_rule &rule) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_posit p = posit;
    const lpt_odds odds = lpt_make_odds(rule.bits);
    lpt_each<MODE>(x, y, first, last, rule, [=](U u, uint32_t random) {
        return lpt_round_posit<T, MODE>(u, p, odds, random);
    });
}

template <class T>
void posit(const T *x, T *y, int64_t first, int64_t last, const lpt_posit &p,
           const lpt_rule &rule) {
    lpt_with_mode(rule.mode, [&](auto mode) {
        posit_loop<T, decltype(mode)::value>(x, y, first, last, p, rule);
    });
}

}  // namespace

extern const lpt_codebooks LPT_CODEBOOKS = {{table<float>, posit<float>},
                                            {table<double>, posit<double>}};
