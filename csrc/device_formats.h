// What the device's loops do to an element, as an argument of theirs.
#pragma once
#include "device.h"
#include "posit.h"
#include "table.h"

template <class T, int MODE, bool PLAIN> struct lpt_to_grid {
    typedef typename lpt_carrier<T>::bits U;
    lpt_cell<T> cell;
    LPT_INSIDE U operator()(U u, uint32_t random) const {
        return lpt_round<T, MODE, PLAIN>(u, cell, random);
    }
};

template <class T, int MODE> struct lpt_to_table {
    typedef typename lpt_carrier<T>::bits U;
    lpt_table<T> table;
    lpt_odds odds;
    LPT_INSIDE U operator()(U u, uint32_t random) const {
        return lpt_round_to<T, -1, MODE>(u, table, odds, random);
    }
};

template <class T, int MODE> struct lpt_to_posit {
    typedef typename lpt_carrier<T>::bits U;
    lpt_posit posit;
    lpt_odds odds;
    LPT_INSIDE U operator()(U u, uint32_t random) const {
        return lpt_round_posit<T, MODE>(u, posit, odds, random);
    }
};
