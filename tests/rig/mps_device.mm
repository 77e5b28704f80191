// at::mps::MPSDevice against torch's own header.
#include <ATen/mps/MPSDevice.h>

#include "modes.h"

namespace at::mps {

MPSDevice* MPSDevice::_device = nullptr;

MPSDevice::MPSDevice() : _mtl_device(MTLCreateSystemDefaultDevice()) {}

MPSDevice::~MPSDevice() {
  [_mtl_device release];
}

// Never destroyed: tensors outlive static destructors.
MPSDevice* MPSDevice::getInstance() {
  static auto* one = new MPSDevice;
  return one;
}

// The product is macOS 14.0, so no newer one is claimed.
bool MPSDevice::isMacOS13Plus(MacOSVersion) const {
  return false;
}

std::string MPSDevice::getName() const {
  return [[_mtl_device name] UTF8String];
}

unsigned MPSDevice::getCoreCount() const {
  return rig::modes().cores;
}

bool is_available() {
  return true;
}

bool is_macos_13_or_newer(MacOSVersion version) {
  return MPSDevice::getInstance()->isMacOS13Plus(version);
}

bool is_apple_family_or_newer(AppleGPUFamily family) {
  return family == AppleGPUFamily::APPLE_7_PLUS;
}

} // namespace at::mps

extern "C" unsigned rig_core_count() {
  return at::mps::MPSDevice::getInstance()->getCoreCount();
}
