#include <algorithm>

#include "cuda/bindings/decoder.hpp"
#include "cuda/decoder/best.hpp"

namespace maskattn::cuda {
namespace {

// cap(map(scale * hidden)): scores (rows, vocab), left on the device.
class HeadHandle {
 public:
  HeadHandle(const DevicePointer& device, const py::object& weight, const py::object& bias, float scale, float softcap)
      : device_(device), weight_(weight), bias_(bias), scale_(scale), softcap_(softcap) {}

  py::object scores(const DeviceArray& hidden) const {
    const auto& weight = weight_.cast<const DeviceArray&>();
    require(hidden.shape().size() == 2 && hidden.extent(1) == weight.extent(1), "hidden must have shape (rows, width)");
    auto made = new_floats(device_, hidden.extent(0), weight.extent(0));
    const MatrixProduct product{.rows = hidden.extent(0),
                                .outputs = weight.extent(0),
                                .inputs = weight.extent(1),
                                .dtype = weight.kind(),
                                .x = nullptr,
                                .weight = weight.data(),
                                .bias = bias_.is_none() ? nullptr : bias_.cast<const DeviceArray&>().floats(),
                                .out = made->floats(),
                                .scale = scale_};
    {
      const py::gil_scoped_release unlocked;
      const Turn turn(*device_);
      multiply(product, hidden.floats());
    }
    return py::cast(std::move(made));
  }

  // The `count` highest scores of each row, whose they are, and the logarithms of the sums of exp(score).
  py::tuple best(const DeviceArray& hidden, int count, bool with_sums) const {
    const py::object all = scores(hidden);
    const auto& of_rows = all.cast<const DeviceArray&>();
    BestCall call{of_rows.extent(0), of_rows.extent(1), count, of_rows.floats(), nullptr, nullptr};
    require(count >= 1 && count <= call.width, "count must be from 1 to the number of scores");
    const auto rows = static_cast<std::size_t>(call.rows), many = rows * static_cast<std::size_t>(count);
    std::vector<Candidate> found(many);
    py::array_t<float> values({call.rows, count}), sums(with_sums ? call.rows : 0);
    py::array_t<std::int64_t> indices({call.rows, count});
    float* to_sums = sums.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      const Turn turn(*device_);
      const Stream stream = device_->stream.get();
      const DeviceMemory chosen(many * sizeof(Candidate), stream), logsumexp(rows * sizeof(float), stream),
          work(best_workspace_bytes(call), stream);
      call.found = chosen.data<Candidate>();
      call.logsumexp = with_sums ? logsumexp.data<float>() : nullptr;
      cuda::best(call, work.data(), stream);
      if (many > 0) copy(found.data(), chosen.data(), many * sizeof(Candidate), stream);
      if (with_sums && rows > 0) copy(to_sums, logsumexp.data(), rows * sizeof(float), stream);
      synchronize(stream);
    }
    for (std::size_t i = 0; i < many; ++i) {
      values.mutable_data()[i] = found[i].value;
      indices.mutable_data()[i] = found[i].index < call.width ? found[i].index : 0;  // no score of the row is a number
    }
    return py::make_tuple(values, indices, sums);
  }

 private:
  void multiply(MatrixProduct product, const float* hidden) const {
    const Stream stream = device_->stream.get();
    const std::int64_t count = std::int64_t{product.rows} * product.inputs;
    const DeviceMemory narrow(product.dtype == Dtype::float32 ? 0 : static_cast<std::size_t>(count) * size_of(product.dtype),
                              stream);
    if (product.dtype != Dtype::float32) convert(count, hidden, narrow.data(), product.dtype, stream);
    product.x = product.dtype == Dtype::float32 ? static_cast<const void*>(hidden) : narrow.data();
    device_->products.multiply(product);
    if (softcap_ != 0) cap_scores(std::int64_t{product.rows} * product.outputs, product.out, softcap_, stream);
  }

  DevicePointer device_;
  py::object weight_, bias_;
  float scale_, softcap_;
};

}  // namespace

void register_device_heads(py::module_& m) {
  py::class_<HeadHandle>(m, "DeviceHead")
      .def(py::init<const DevicePointer&, const py::object&, const py::object&, float, float>(), py::arg("device"),
           py::arg("weight"), py::arg("bias"), py::arg("scale"), py::arg("softcap"))
      .def("scores", &HeadHandle::scores, py::arg("hidden"))
      .def("best", &HeadHandle::best, py::arg("hidden"), py::arg("count"), py::arg("with_sums"));
}

}  // namespace maskattn::cuda
