// Sample action chunks in C++ with OpenVINO alone, from what `specpolicy export` has written.
//
//     OV=$(python -c "import openvino; print(openvino.__path__[0])")
//     g++ -std=c++17 -O2 examples/run_without_python.cpp -I$OV/include $OV/libs/libopenvino.so.* -Wl,-rpath,$OV/libs -o host
//     ./host square_round
//
// The distribution is that of the policy's DDPM chain, up to the rounding of float32. Another runtime that reads ONNX is
// used in the same way. A second argument names a file of float64 random numbers to use in place of drawing them.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

using Numbers = std::vector<double>;

// The numbers that stand behind the keys, each sought behind the one before: one, or those of a list.
Numbers numbers_in(const std::string& json, const std::vector<std::string>& keys) {
    size_t at = 0;
    for (const auto& key : keys) {
        at = json.find("\"" + key + "\":", at);
        if (at == std::string::npos) throw std::runtime_error("the manifest has no " + key + ": export again");
        at += key.size() + 3;
    }
    const char* now = json.c_str() + at + std::strspn(json.c_str() + at, " \n");
    const bool list = *now == '[';
    now += list;
    Numbers found;
    for (char* end = nullptr;; now = end + std::strspn(end, ", \n")) {  // strtod reads nothing at the closing bracket
        const double number = std::strtod(now, &end);
        if (end == now || (!found.empty() && !list)) return found;
        found.push_back(number);
    }
}

// Random numbers: drawn, or one after the other from a file.
struct Random {
    std::ifstream file;
    std::mt19937_64 engine{std::random_device{}()};
    std::normal_distribution<double> normals;
    std::uniform_real_distribution<double> uniforms;  // in [0, 1)

    double normal() { return file.is_open() ? next() : normals(engine); }
    double uniform() { return file.is_open() ? next() : uniforms(engine); }
    double next() {
        double number = 0;
        if (file.read(reinterpret_cast<char*>(&number), sizeof number)) return number;
        throw std::runtime_error("the file has too few random numbers");
    }
};
// Write numbers into a tensor of whichever type the graph wants.
template <typename Next>
void fill(ov::Tensor tensor, Next next) {
    for (size_t i = 0; i < tensor.get_size(); ++i) {
        if (tensor.get_element_type() == ov::element::f32) tensor.data<float>()[i] = float(next(i));
        else if (tensor.get_element_type() == ov::element::f64) tensor.data<double>()[i] = next(i);
        else if (tensor.get_element_type() == ov::element::i64) tensor.data<int64_t>()[i] = int64_t(next(i));
        else tensor.data<bool>()[i] = next(i) != 0;
    }
}

int main(int count, char** arguments) try {
    if (count < 2) throw std::runtime_error("usage: run_without_python FOLDER [NUMBERS]");
    const std::string folder = arguments[1];
    std::ifstream file(folder + "/manifest.json");
    const std::string json{std::istreambuf_iterator<char>(file), {}};
    Random random;
    if (count > 2) random.file.open(arguments[2], std::ios::binary);
    ov::Core core;
    const ov::AnyMap settings{{"INFERENCE_NUM_THREADS", "1"}, {"SNIPPETS_MODE", "DISABLE"}};  // whose fusion crashes here
    auto compiled = core.compile_model(folder + "/round.onnx", "CPU", settings);
    auto request = compiled.create_infer_request();
    std::map<std::string, ov::Tensor> inputs;
    for (const auto& input : compiled.inputs())  // some have names that the exporter gave them besides
        for (const auto& name : input.get_names()) inputs[name] = request.get_tensor(input);

    // The condition: here a robot at rest in the middle of its observations, oldest step first.
    const auto center = numbers_in(json, {"observation", "center"}), width = numbers_in(json, {"observation", "width"}),
               base = numbers_in(json, {"observation", "base"}), seen = center;
    fill(inputs["cond"], [&](size_t i) { i %= center.size(); return (seen[i] - center[i]) / width[i] + base[i]; });
    std::vector<std::string> state;
    for (const auto& output : compiled.outputs())
        for (const auto& name : output.get_names())
            if (name.rfind("next_", 0) == 0) state.push_back(name.substr(5));
    for (const auto& name : state) {
        if (name == "x" || name == "last_eval_x") continue;
        fill(inputs[name], [value = numbers_in(json, {"start", name})[0]](size_t) { return value; });
    }
    fill(inputs["x"], [&](size_t) { return random.normal(); });
    inputs["x"].copy_to(inputs["last_eval_x"]);

    const int64_t steps = int64_t(numbers_in(json, {"steps"})[0]);
    while (inputs["k"].data<int64_t>()[0] < steps) {
        fill(inputs["noise"], [&](size_t) { return random.normal(); });
        fill(inputs["uniform"], [&](size_t) { return random.uniform(); });
        fill(inputs["fresh"], [&](size_t) { return random.normal(); });
        request.infer();
        for (const auto& name : state) request.get_tensor("next_" + name).copy_to(inputs[name]);
    }
    if (!inputs["finite"].data<bool>()[0]) throw std::runtime_error("the network returned NaN or infinity");
    const auto middle = numbers_in(json, {"action", "center"}), scale = numbers_in(json, {"action", "width"}),
               origin = numbers_in(json, {"action", "base"});
    const size_t first = size_t(numbers_in(json, {"action", "first_action"})[0]),
                 last = first + size_t(numbers_in(json, {"action", "n_action_steps"})[0]), dim = middle.size();
    for (size_t step = first; step < last; ++step)
        for (size_t i = 0; i < dim; ++i)
            std::cout << (inputs["x"].data<float>()[step * dim + i] - origin[i]) * scale[i] + middle[i]
                      << (i + 1 < dim ? " " : "\n");
    std::cerr << inputs["passes"].data<int64_t>()[0] << " network evaluations for " << steps << " denoising steps\n";
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
