// Every driver keeps the contract, plain and under the wrappers.

import { wrapFault } from '../../lib/drivers/fault/index.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { contractSuite } from '../support/contract.js';
import { TwinBackend } from '../support/twin.js';

contractSuite(
  'a twin',
  () => Promise.resolve({ device: new BlockDevice(new TwinBackend({ blocks: 16384 })) }),
  { data: true, discardZeroes: true },
);
contractSuite(
  'a twin under faults',
  () =>
    Promise.resolve({
      device: new BlockDevice(
        wrapFault(new TwinBackend({ blocks: 16384 }), new Map([['delayUs', '50']])),
      ),
    }),
  { data: true, discardZeroes: true },
);
