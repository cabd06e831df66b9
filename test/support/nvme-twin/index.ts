export { attachTwin, type TwinShare } from './attach.js';
export { Faults, statusOf, type FaultAction, type FaultMatch } from './faults.js';
export { Dma } from './dma.js';
export { FREED_BYTE, TwinMemory, Violations } from './memory.js';
export { type NvmeTwinOptions, Oncs, type TwinNamespaceOptions } from './options.js';
export { trackOperations } from './tracked.js';
export { NvmeTwin, sharedFor } from './twin.js';
export { Code } from './wire.js';
