export { fence, publish, ringDoorbell } from './ordering.js';
export { decode, layout, type Field, type Layout } from './layout.js';
