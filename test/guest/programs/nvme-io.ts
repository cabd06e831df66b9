// Drives an NVMe controller of QEMU through VFIO: I/O, a reset, an interrupt-driven wait.

import { open } from '../../../lib/index.js';
import { bindDriver, loadModules, pciDevices, report } from '../inside.js';

const NVME_CLASS = 0x010802;

loadModules('vfio-pci');
const controller = pciDevices().find((device) => device.class === NVME_CLASS)!;
bindDriver(controller.address, 'vfio-pci');
const device = await open(`nvme:${controller.address}/1${process.argv[2] ?? ''}`);
report('info', device.info);
const buffer = device.memory.alloc(65536);
for (let i = 0; i < buffer.u32.length; i++) buffer.u32[i] = i * 2654435761;
await device.write(8, buffer);
buffer.u8.fill(0);
await device.read(8, buffer);
let wrong = 0;
for (let i = 0; i < buffer.u32.length; i++) if (buffer.u32[i] !== (i * 2654435761) >>> 0) wrong++;
report('wrong', wrong);
await device.flush();
buffer.free();
await device.close();
report('closed', true);
