export {
  CONTROL_LAYOUT,
  Control,
  CQE_LAYOUT,
  Cqe,
  EnterFlag,
  Errno,
  Feature,
  Opcode,
  Register,
  Setup,
  SQE_LAYOUT,
  Sqe,
  SqeFlag,
  SqFlag,
} from './layout.js';
export { probeUring, type UringProbe } from './probe.js';
export { enterControl, Ring, type RingOptions } from './ring.js';
export { BufferTable } from './buffers.js';
