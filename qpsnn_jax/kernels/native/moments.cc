// The handler of moments by channel.
#include "moments.h"

#include "handlers.h"

namespace qpsnn {

static void ChannelMoments(const Call& call) {
  const Floats x = call.operand(0), mean = call.result(0), var = call.result(1);
  const int64_t channels = mean.element_count(), rows = channels ? x.element_count() / channels : 0;
  channel_moments(call.pool(), rows, channels, x.typed_data(), mean.typed_data(), var.typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(channel_moments, qpsnn::ChannelMoments);
