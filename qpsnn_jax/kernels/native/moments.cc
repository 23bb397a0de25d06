// The handler of moments by channel.
#include "moments.h"

#include "handlers.h"

namespace qpsnn {

static void ChannelMoments(ffi::ThreadPool threads, Floats x, FloatResult mean, FloatResult var) {
  const int64_t channels = mean->element_count(), rows = channels ? x.element_count() / channels : 0;
  channel_moments(pool_of(threads), rows, channels, x.typed_data(), mean->typed_data(), var->typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(
    channel_moments, qpsnn::ChannelMoments,
    qpsnn::ffi::Ffi::Bind().Ctx<qpsnn::ffi::ThreadPool>().Arg<qpsnn::Floats>().Ret<qpsnn::Floats>().Ret<qpsnn::Floats>());
