// Products of many rows of whole numbers: a block of weights is brought once into the form that multiplies fastest,
// then serves all tiles of rows. Include after whole_tile.h and one of the form_*.h headers, which define ByteForm and
// NibbleForm.
#pragma once

#include "whole_table.h"

namespace mindport {
namespace {

template <class Form, int M, int P>
void many_tile(const WholeTile& tile) {
  const WholeTile t = tile;  // a copy: what is stored to C cannot change it
  Fetch fetch(t, t.a.words);
  Totals<M, P> totals;
  load_totals(t, totals);
  Sums<M, P> kept;
  for (Part<Form::kNarrow> part(t); part; part.next()) {
    Sums<M, P> sums;
    if constexpr (Form::kSigned) sums = {};
    else set_offsets(sums, t.a.offsets + part.index * M);
    Form::template add<M, P>(sums, t.b + part.begin * Form::kBlockBytes, t.b_panel,
                             t.a.words + part.begin * Form::kBlockWords * M, part.count, fetch);
    join_part(t, part, sums, kept, totals);
  }
  store_totals(t, totals);
}

template <class Form, int M>
constexpr void fill_many(WholeMany& many) {
  if constexpr (M <= kManyRows) {
    many.tile[M][0] = many_tile<Form, M, 1>;
    if constexpr (kManyWidth > 1) many.tile[M][1] = many_tile<Form, M, kManyWidth>;
    fill_many<Form, M + 1>(many);
  }
}

template <class Form>
constexpr WholeMany make_many() {
  WholeMany many{};
  many.tile_rows = kManyRows;
  many.width = kManyWidth;
  many.block_bytes = Form::kBlockBytes;
  many.block_words = Form::kBlockWords;
  many.fetch_words = kFetchWords;
  many.weights = Form::weights;
  many.rows = Form::rows;
  fill_many<Form, 1>(many);
  return many;
}

constexpr WholeTable make_many_table() {
  WholeTable table = make_whole_table();
  table.many[0] = make_many<ByteForm>();
  table.many[1] = make_many<NibbleForm>();
  return table;
}

}  // namespace
}  // namespace mindport
