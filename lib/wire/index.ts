export { fence, publish, ringDoorbell } from './ordering.js';
export { checkLayout, decode, layout, type Field, type Layout } from './layout.js';
