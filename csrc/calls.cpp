// _C.attend and _C.quantize_kv: the registered ops, through the dispatcher, as torch.ops.int4kv.attend and quantize_kv are. What is left
// out is torch.ops' way there, which reads a call by its schema into boxed values: a decode step meets that code cold, layer after
// layer, since all weights have passed through the caches since the last one.
#include "calls.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_numbers.h>
#include <torch/csrc/utils/python_strings.h>
#include <torch/csrc/utils/python_symnode.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "signatures.h"

namespace int4kv {
namespace {

namespace py = pybind11;
using c10::SymInt;

struct Argument {
  const char* op;
  PyObject* name;  // interned: names in a call are the same object, mostly
  c10::IValue preset;
};

std::string text_of(PyObject* string) {
  return py::cast<std::string>(py::handle(string));
}

[[noreturn]] void refuse(const Argument& argument, PyObject* given, const char* accepted) {
  const auto type = py::repr(py::type::of(given));
  TORCH_CHECK_TYPE(false, "int4kv::", argument.op, ": ", text_of(argument.name), " is ", text_of(type.ptr()), "; accepted is ", accepted);
}

// Reads one argument of type T from Python, which keeps it alive during the call; null is what was not given.
template <typename T>
struct Reader;

template <>
struct Reader<at::Tensor> {
  static const at::Tensor& read(PyObject* given, const Argument& argument) {
    if (!THPVariable_Check(given)) refuse(argument, given, "a tensor");
    return THPVariable_Unpack(given);
  }
};

// A tensor that its Python object keeps alive: one of its own would have torch count the object's references too.
class Borrowed {
 public:
  explicit Borrowed(const at::Tensor& tensor) : tensor_(Traits::createBorrow(tensor)) {}
  Borrowed() = default;
  Borrowed(Borrowed&&) = default;
  ~Borrowed() {
    if (tensor_) Traits::destroyBorrow(*tensor_);
  }
  operator const OptionalTensor&() const { return tensor_; }

 private:
  using Traits = c10::MaybeOwnedTraits<at::Tensor>;
  OptionalTensor tensor_;
};

template <>
struct Reader<OptionalTensor> {
  static Borrowed read(PyObject* given, const Argument& argument) {
    if (!given || given == Py_None) return Borrowed();
    return Borrowed(Reader<at::Tensor>::read(given, argument));
  }
};

template <>
struct Reader<SymInt> {
  static SymInt read(PyObject* given, const Argument& argument) {
    if (!given) return argument.preset.toInt();
    if (PyLong_Check(given)) return THPUtils_unpackLong(given);
    if (!torch::is_symint(py::handle(given))) refuse(argument, given, "an int");
    return py::cast<SymInt>(py::handle(given));
  }
};

template <>
struct Reader<double> {
  static double read(PyObject* given, const Argument& argument) {
    if (!given) return argument.preset.toDouble();
    if (!PyFloat_Check(given) && !PyLong_Check(given)) refuse(argument, given, "a float");
    return THPUtils_unpackDouble(given);
  }
};

template <>
struct Reader<bool> {
  static bool read(PyObject* given, const Argument& argument) {
    if (!given) return argument.preset.toBool();
    if (!PyBool_Check(given)) refuse(argument, given, "a bool");
    return given == Py_True;
  }
};

template <>
struct Reader<std::string_view> {
  static std::string_view read(PyObject* given, const Argument& argument) {
    if (!given) return argument.preset.toStringView();
    if (!PyUnicode_Check(given)) refuse(argument, given, "a string");
    return THPUtils_unpackStringView(given);
  }
};

template <typename Signature>
class Call;

template <typename R, typename... A>
class Call<R(A...)> {
 public:
  explicit Call(const char* op)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow((std::string("int4kv::") + op).c_str(), "").typed<R(A...)>()) {
    const auto& described = handle_.schema().arguments();
    for (size_t i = 0; i < kCount; i++) {
      arguments_[i] = {op, PyUnicode_InternFromString(described[i].name().c_str()), described[i].default_value().value_or(c10::IValue())};
      names_[i] = arguments_[i].name;
      if (!described[i].kwarg_only()) positional_ = i + 1;
    }
  }

  PyObject* operator()(PyObject* const* given, Py_ssize_t positional, PyObject* names) const {
    const Py_ssize_t count = positional + (names ? PyTuple_GET_SIZE(names) : 0);
    for (Py_ssize_t i = 0; i < count; i++) __builtin_prefetch(given[i]);  // all at once, not one after the other as they are read
    std::array<PyObject*, kCount> found{};
    place(given, positional, names, found);
    return call(found, std::index_sequence_for<A...>());
  }

 private:
  static constexpr size_t kCount = sizeof...(A);

  void place(PyObject* const* given, Py_ssize_t positional, PyObject* names, std::array<PyObject*, kCount>& found) const {
    TORCH_CHECK_TYPE(
        static_cast<size_t>(positional) <= positional_, "int4kv::", arguments_[0].op, " was given ", positional,
        " positional arguments; accepted are ", positional_, ", the others by name");
    std::copy_n(given, positional, found.begin());
    const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
      PyObject*& argument = found[index_of(PyTuple_GET_ITEM(names, i))];
      TORCH_CHECK_TYPE(!argument, "int4kv::", arguments_[0].op, " was given ", text_of(PyTuple_GET_ITEM(names, i)), " twice");
      argument = given[positional + i];
    }
    for (size_t i = 0; i < positional_; i++) {
      TORCH_CHECK_TYPE(found[i], "int4kv::", arguments_[0].op, " needs ", text_of(arguments_[i].name));
    }
  }

  size_t index_of(PyObject* name) const {
    for (size_t i = 0; i < kCount; i++) {
      if (names_[i] == name) return i;
    }
    for (size_t i = 0; i < kCount; i++) {
      if (PyUnicode_Compare(names_[i], name) == 0) return i;
    }
    TORCH_CHECK_TYPE(false, "int4kv::", arguments_[0].op, " has no argument '", text_of(name), "'");
  }

  template <size_t... i>
  PyObject* call(const std::array<PyObject*, kCount>& found, std::index_sequence<i...>) const {
    std::tuple<decltype(Reader<std::decay_t<A>>::read(nullptr, std::declval<const Argument&>()))...> read{
        Reader<std::decay_t<A>>::read(found[i], arguments_[i])...};
    const auto run = [&] {
      const py::gil_scoped_release no_gil;
      std::optional<at::AutoDispatchBelowAutograd> no_grad;  // autograd boxes all arguments to find that there is nothing to do
      if (!c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled()) no_grad.emplace();
      return handle_.call(as_argument<A>(std::get<i>(read))...);
    };
    if constexpr (std::is_void_v<R>) {
      run();
      return Py_NewRef(Py_None);
    } else {
      return THPVariable_Wrap(run());
    }
  }

  // An op takes what it writes to as a reference that is not const.
  template <typename T, typename V>
  static T as_argument(V& value) {
    if constexpr (std::is_same_v<V, Borrowed>) {
      return value;
    } else if constexpr (std::is_reference_v<T>) {
      return const_cast<T>(value);
    } else {
      return value;
    }
  }

  c10::TypedOperatorHandle<R(A...)> handle_;
  std::array<Argument, kCount> arguments_;
  std::array<PyObject*, kCount> names_;  // theirs, side by side
  size_t positional_ = 0;
};

PyObject* attend(PyObject*, PyObject* const* given, Py_ssize_t positional, PyObject* names) {
  HANDLE_TH_ERRORS
  static const Call<Attend> op("attend");
  return op(given, positional, names);
  END_HANDLE_TH_ERRORS
}

PyObject* quantize_kv(PyObject*, PyObject* const* given, Py_ssize_t positional, PyObject* names) {
  HANDLE_TH_ERRORS
  static const Call<QuantizeKv> op("quantize_kv");
  return op(given, positional, names);
  END_HANDLE_TH_ERRORS
}

using Function = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);

PyMethodDef definition(const char* name, Function function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL | METH_KEYWORDS, nullptr};
}

} // namespace

void add_calls(py::module_& module) {
  static PyMethodDef functions[] = {definition("attend", attend), definition("quantize_kv", quantize_kv), {}};
  PyModule_AddFunctions(module.ptr(), functions);
}

} // namespace int4kv
