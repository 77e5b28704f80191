// Metal as of macOS 14. Protocols, classes and constants come from metal-cpp, <Metal/MetalClasses.h>; here are its C structures and functions.
#pragma once
#import <Foundation/Foundation.h>
#include <IOSurface/IOSurfaceRef.h>
#include <mach/mach.h>

typedef struct {
  NSUInteger width, height, depth;
} MTLSize;

typedef struct {
  NSUInteger x, y, z;
} MTLOrigin;

typedef struct {
  MTLOrigin origin;
  MTLSize size;
} MTLRegion;

typedef struct {
  float x, y;
} MTLSamplePosition;

typedef struct {
  NSUInteger size, align;
} MTLSizeAndAlign;

typedef struct MTLResourceID {
  uint64_t _impl;
} MTLResourceID;

NS_INLINE MTLSize MTLSizeMake(NSUInteger width, NSUInteger height, NSUInteger depth) {
  MTLSize size = {width, height, depth};
  return size;
}

#include <Metal/MetalClasses.h>

FOUNDATION_EXPORT id<MTLDevice> MTLCreateSystemDefaultDevice(void);
FOUNDATION_EXPORT NSArray<id<MTLDevice>> *MTLCopyAllDevices(void);
