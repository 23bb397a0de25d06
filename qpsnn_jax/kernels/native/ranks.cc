// The handler of ranks: matrices k n m to their ranks k.
#include "ranks.h"

#include "handlers.h"

namespace qpsnn {

static void MatrixRanks(const Call& call) {
  const Floats matrices = call.operand(0);
  const auto shape = matrices.dimensions();
  matrix_ranks(call.pool(), shape[0], shape[1], shape[2], matrices.typed_data(), call.result(0).typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(matrix_ranks, qpsnn::MatrixRanks);
