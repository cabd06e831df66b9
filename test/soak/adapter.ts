import type { Soak } from './harness.js';
export const adapterSoak: Soak = {
  full: 0,
  unit: 'x',
  start() {
    throw new Error('x');
  },
};
