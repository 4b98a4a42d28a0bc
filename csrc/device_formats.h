// What the device's loops do to an element, as an argument of theirs.
#pragma once
#include "device.h"
#include "lean.h"
#include "posit.h"
#include "table.h"

// What a cell is known to be, and how much less there is to do.
enum lpt_kind { LPT_RARE, LPT_PLAIN, LPT_ROOMY };

template <class T, int MODE, int KIND> struct lpt_to_grid {
    typedef typename lpt_carrier<T>::bits U;
    lpt_cell<T> cell;
    LPT_METHOD U operator()(U u, uint32_t random) const {
        if (KIND == LPT_ROOMY)
            return lpt_round_roomy<T, LPT_NEAREST, LPT_ALL_ENDS>(u, cell, 0);
        if (KIND == LPT_PLAIN)
            return lpt_round_plain<T, MODE, false, LPT_ALL_ENDS>(u, cell, random);
        return lpt_round<T, MODE, false>(u, cell, random);
    }
};

template <int ENDS, class T, int MODE>
LPT_METHOD void lpt_apply_plain(const lpt_cell<T> &cell, typename lpt_carrier<T>::bits (&v)[4],
                                const uint32_t (&random)[4]) {
#pragma unroll
    for (int w = 0; w < 4; ++w)
        v[w] = lpt_round_plain<T, MODE, false, ENDS>(v[w], cell, random[w]);
}

// Where no element of a warp vanishes or lies beyond the limits of the format, none asks what
// becomes of it there. A zero does not vanish, if its sign is kept.
template <class T, int MODE>
LPT_METHOD void lpt_apply(const lpt_to_grid<T, MODE, LPT_PLAIN> &f,
                          typename lpt_carrier<T>::bits (&v)[4], const uint32_t (&random)[4]) {
    typedef typename lpt_carrier<T>::bits U;
    const U magnitude = ~((U)1 << (lpt_carrier<T>::width - 1)), one = f.cell.no_value == ~(U)0;
    U top = 0, low = ~(U)0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const U a = v[w] & magnitude;
        top = a > top ? a : top;
        low = a - one < low ? a - one : low;  // of zero, all ones
    }
    const bool beyond = top > f.cell.inside;
    if (!__any_sync(0xffffffffu, beyond || low < f.cell.tiny - one))
        lpt_apply_plain<LPT_AMONG, T, MODE>(f.cell, v, random);
    else if (!__any_sync(0xffffffffu, beyond))
        lpt_apply_plain<LPT_INSIDE, T, MODE>(f.cell, v, random);
    else
        lpt_apply_plain<LPT_ALL_ENDS, T, MODE>(f.cell, v, random);
}

template <class T, int MODE> struct lpt_to_table {
    typedef typename lpt_carrier<T>::bits U;
    lpt_table<T> table;
    lpt_odds odds;
    LPT_METHOD U operator()(U u, uint32_t random) const {
        return lpt_round_to<T, -1, MODE, true>(u, table, odds, random);
    }
};

template <class T, int MODE> struct lpt_to_posit {
    typedef typename lpt_carrier<T>::bits U;
    lpt_posit posit;
    lpt_odds odds;
    LPT_METHOD U operator()(U u, uint32_t random) const {
        return lpt_round_posit<T, MODE>(u, posit, odds, random);
    }
};
