// What Objective-C++ code and torch's headers use of Foundation. The classes come from metal-cpp, <Foundation/FoundationClasses.h>;
// here is what metal-cpp does not spell: macros, protocols, literals.
#pragma once
#include <Availability.h>
#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <objc/NSObjCRuntime.h>
#include <objc/NSObject.h>
#include <objc/objc.h>
#include <stdarg.h>
#include <stdint.h>

#ifdef __cplusplus
#define FOUNDATION_EXPORT extern "C"
#else
#define FOUNDATION_EXPORT extern
#endif
#define NS_INLINE static inline
#define NS_ASSUME_NONNULL_BEGIN _Pragma("clang assume_nonnull begin")
#define NS_ASSUME_NONNULL_END _Pragma("clang assume_nonnull end")
#define NS_ENUM(type, name) enum name : type name; enum __attribute__((enum_extensibility(open))) name : type
#ifdef __cplusplus
#define NS_OPTIONS(type, name) type name; enum : type
#else
#define NS_OPTIONS(type, name) enum name : type name; enum __attribute__((flag_enum, enum_extensibility(open))) name : type
#endif

#undef NSUIntegerMax
#undef NSIntegerMax
#define NSUIntegerMax ULONG_MAX
#define NSIntegerMax LONG_MAX

typedef double NSTimeInterval;
typedef double CFTimeInterval;
typedef unsigned short unichar;
typedef struct _NSZone NSZone;

typedef struct _NSRange {
  NSUInteger location, length;
} NSRange;

NS_INLINE NSRange NSMakeRange(NSUInteger location, NSUInteger length) {
  NSRange range = {location, length};
  return range;
}

@protocol NSCopying
- (id)copyWithZone:(NSZone *)zone;
@end

typedef struct {
  unsigned long state;
  id __unsafe_unretained *itemsPtr;
  unsigned long *mutationsPtr;
  unsigned long extra[5];
} NSFastEnumerationState;

@protocol NSFastEnumeration
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state
                                  objects:(id __unsafe_unretained *)objects
                                    count:(NSUInteger)count;
@end

#include <Foundation/FoundationClasses.h>

typedef NSString *NSErrorDomain;

@interface NSString (Formatted)
+ (instancetype)stringWithUTF8String:(const char *)text;
+ (instancetype)stringWithFormat:(NSString *)format, ... __attribute__((format(__NSString__, 1, 2)));
- (instancetype)initWithBytes:(const void *)bytes length:(NSUInteger)length encoding:(NSStringEncoding)encoding;
@end

@interface NSArray<ObjectType> (Literals) <NSFastEnumeration>
+ (instancetype)arrayWithObjects:(const ObjectType[])objects count:(NSUInteger)count;
- (ObjectType)objectAtIndexedSubscript:(NSUInteger)index;
@end

@interface NSDictionary<KeyType, ObjectType> (Literals) <NSFastEnumeration>
- (ObjectType)objectForKeyedSubscript:(KeyType)key;
@end

FOUNDATION_EXPORT void NSLog(NSString *format, ...) __attribute__((format(__NSString__, 1, 2)));
