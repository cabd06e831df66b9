import type { Soak } from './harness.js';
export const faultsSoak: Soak = {
  full: 0,
  unit: 'x',
  start() {
    throw new Error('x');
  },
};
