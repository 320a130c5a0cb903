#!/bin/bash
# boards.sh DIR: what /proc/cpuinfo and /sys/devices/system/cpu hold on a Raspberry Pi 4 and 5, in DIR/pi4 and DIR/pi5.
# qemu shows this machine's own, on which PyTorch's cpuinfo library ends the process.
set -eu
board() {  # NAME MODEL FEATURES VARIANT PART REVISION MIDR
  local cpus=$1/sys/devices/system/cpu cpu number
  for number in 0 1 2 3; do
    cpu=$cpus/cpu$number
    mkdir -p "$cpu"/{topology,cpufreq,regs/identification}
    echo "$7" >"$cpu/regs/identification/midr_el1"
    echo 0 >"$cpu/topology/physical_package_id"; echo $number >"$cpu/topology/core_id"
    echo 0-3 >"$cpu/topology/core_siblings_list"; echo f >"$cpu/topology/core_siblings"
    echo $number >"$cpu/topology/thread_siblings_list"; echo $((1 << number)) >"$cpu/topology/thread_siblings"
    echo 1800000 >"$cpu/cpufreq/cpuinfo_max_freq"; echo 600000 >"$cpu/cpufreq/cpuinfo_min_freq"
    printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' $number "$3"
    printf 'CPU variant\t: %s\nCPU part\t: %s\nCPU revision\t: %s\n\n' "$4" "$5" "$6"
  done >"$1/cpuinfo"
  printf 'Revision\t: c03114\nSerial\t\t: 10000000deadbeef\nModel\t\t: %s\n' "$2" >>"$1/cpuinfo"
  echo 0-3 | tee "$cpus"/{possible,present,online} >/dev/null; echo 3 >"$cpus/kernel_max"
}
mkdir -p "$1"/pi4/sys/devices/system/cpu "$1"/pi5/sys/devices/system/cpu; cd "$1"
board pi4 "Raspberry Pi 4 Model B Rev 1.4" "fp asimd evtstrm crc32 cpuid" 0x0 0xd08 3 0x00000000410fd083
board pi5 "Raspberry Pi 5 Model B Rev 1.0" "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
  0x4 0xd0b 1 0x00000000414fd0b1
