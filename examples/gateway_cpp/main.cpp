// A client of a gateway in C++: a point on a line is steered by the run's policy, and every step
// enters the run's replay. See Makefile for how to build it.
//
//     ./client 127.0.0.1:50051 200
//
// The env here gives the observation that the policy asks for in its first array, filled with one
// number; put your simulator in its place.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "worldloom/gateway/v1/gateway.grpc.pb.h"

namespace wl = worldloom::gateway::v1;

namespace {

// Bytes of one number of a dtype; 0 for one that this version does not know.
std::size_t SizeOf(wl::DType dtype) {
  switch (dtype) {
    case wl::D_TYPE_BOOL:
    case wl::D_TYPE_UINT8:
      return 1;
    case wl::D_TYPE_INT32:
    case wl::D_TYPE_FLOAT32:
      return 4;
    case wl::D_TYPE_INT64:
    case wl::D_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

// An array for one env: [1, *shape], filled with `value` where it is float32, else zero.
wl::Tensor Filled(const wl::TensorSpec& spec, float value) {
  wl::Tensor tensor;
  tensor.set_dtype(spec.dtype());
  tensor.add_shape(1);
  std::size_t count = 1;
  for (const auto axis : spec.shape()) {
    tensor.add_shape(axis);
    count *= axis;
  }
  std::string data(count * SizeOf(spec.dtype()), '\0');
  if (spec.dtype() == wl::D_TYPE_FLOAT32) {
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(&data[i * sizeof(float)], &value, sizeof(float));
    }
  }
  tensor.set_data(std::move(data));
  return tensor;
}

// The first number of an action; 0 where it is no float.
float FirstOf(const wl::Tensor& tensor) {
  float value = 0.0F;
  if (tensor.dtype() == wl::D_TYPE_FLOAT32 && tensor.data().size() >= sizeof(float)) {
    std::memcpy(&value, tensor.data().data(), sizeof(float));
  }
  return value;
}

void Check(const grpc::Status& status, const char* what) {
  if (!status.ok()) {
    std::cerr << what << ": " << status.error_message() << "\n";
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: client HOST:PORT STEPS\n";
    return 2;
  }
  auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  auto stub = wl::PolicyService::NewStub(channel);
  const int steps = std::stoi(argv[2]);

  wl::DescribeResponse described;
  {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    Check(stub->Describe(&context, {}, &described), "Describe");
  }
  const auto& features = described.features();
  wl::OpenRequest open;
  open.set_client("cpp");
  open.set_num_envs(1);
  open.set_fingerprint(described.fingerprint());
  open.set_store(std::count(features.begin(), features.end(), "store") > 0);
  open.set_explore(std::count(features.begin(), features.end(), "explore") > 0);
  wl::OpenResponse session;
  {
    grpc::ClientContext context;
    Check(stub->Open(&context, open, &session), "Open");
  }

  grpc::ClientContext context;
  context.AddMetadata("worldloom-session-bin", session.secret());
  auto stream = stub->ActStream(&context);
  constexpr int kEpisode = 25;
  float place = 1.0F;
  std::uint64_t stored = 0;
  for (int step = 0; step < steps; ++step) {
    const int at = step % (kEpisode + 1);
    if (at == 0) place = 1.0F;
    wl::ActStreamRequest question;
    question.set_number(step + 1);
    auto* request = question.mutable_request();
    request->add_env(0);
    request->add_step(step);
    for (const auto& spec : described.obs()) *request->add_obs() = Filled(spec, place);
    request->add_reward(at == 0 ? 0.0F : -place * place);
    request->set_is_first(std::string(1, at == 0 ? '\1' : '\0'));
    request->set_terminated(std::string(1, '\0'));
    request->set_truncated(std::string(1, at == kEpisode ? '\1' : '\0'));
    wl::ActStreamResponse answer;
    if (!stream->Write(question) || !stream->Read(&answer)) {
      Check(stream->Finish(), "ActStream");
      return 1;
    }
    if (answer.has_refusal()) {
      std::cerr << answer.refusal().code() << ": " << answer.refusal().message() << "\n";
      return 1;
    }
    place = std::clamp(place + 0.1F * FirstOf(answer.response().action(0)), -2.0F, 2.0F);
    stored = answer.response().stored(0);
  }
  stream->WritesDone();
  Check(stream->Finish(), "ActStream");

  wl::CloseResponse closed;
  grpc::ClientContext last;
  last.AddMetadata("worldloom-session-bin", session.secret());
  Check(stub->Close(&last, {}, &closed), "Close");
  if (closed.position_size() > 0) stored = closed.position(0).stored();
  std::cout << "env " << described.env() << ": " << steps << " questions, " << stored
            << " rows stored\n";
  return 0;
}
