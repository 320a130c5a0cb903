/* LD_PRELOAD for the tests: whoever asks a file named videoN what kind of video device it is gets an answer by the
 * kernel's own header: video0 is a USB camera, video1 its metadata, video2 belongs to a Raspberry Pi's connector, video3
 * takes any size. Everything else is no video device. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int device(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 7) return -1;
  path[n] = 0;
  return strncmp(path + n - 6, "video", 5) ? -1 : path[n - 1] - '0';
}

static int capability(int which, struct v4l2_capability *cap) {
  strcpy((char *)cap->driver, which == 2 ? "unicam" : "uvcvideo");
  strcpy((char *)cap->card, "HD Pro Webcam C920");
  cap->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_META_CAPTURE | V4L2_CAP_STREAMING | V4L2_CAP_DEVICE_CAPS;
  cap->device_caps = V4L2_CAP_STREAMING | (which == 1 ? V4L2_CAP_META_CAPTURE : V4L2_CAP_VIDEO_CAPTURE);
  return 0;
}

static int format(struct v4l2_fmtdesc *f) {
  if (f->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || f->index > 1) return errno = EINVAL, -1;
  strcpy((char *)f->description, f->index ? "Motion-JPEG" : "YUYV 4:2:2");
  f->pixelformat = f->index ? V4L2_PIX_FMT_MJPEG : V4L2_PIX_FMT_YUYV;
  return 0;
}

static int size(int which, struct v4l2_frmsizeenum *s) {
  int mjpeg = s->pixel_format == V4L2_PIX_FMT_MJPEG;
  if (which == 3 && s->index == 0) {
    s->type = V4L2_FRMSIZE_TYPE_STEPWISE;
    s->stepwise = (struct v4l2_frmsize_stepwise){32, 4096, 8, 16, 2160, 4};
    return 0;
  }
  if (which == 3 || s->index > (mjpeg ? 1u : 0u)) return errno = EINVAL, -1;
  s->type = V4L2_FRMSIZE_TYPE_DISCRETE;
  s->discrete.width = s->index ? 1920 : mjpeg ? 800 : 320;
  s->discrete.height = s->index ? 1080 : mjpeg ? 600 : 240;
  return 0;
}

int ioctl(int fd, unsigned long request, ...) {
  static int (*real)(int, unsigned long, ...);
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  int which = device(fd);
  if (which >= 0 && which <= 3) {
    if ((unsigned)request == (unsigned)VIDIOC_QUERYCAP) return capability(which, argument);
    if ((unsigned)request == (unsigned)VIDIOC_ENUM_FMT) return format(argument);
    if ((unsigned)request == (unsigned)VIDIOC_ENUM_FRAMESIZES) return size(which, argument);
  }
  if (!real) real = dlsym(RTLD_NEXT, "ioctl");
  return real(fd, request, argument);
}
