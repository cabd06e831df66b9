// `node dist/test/guest/prepare.js`: makes what guests boot, ahead of the tests and their limits.
// Where it cannot be made, the tests say so themselves.

import { guestImage, GuestUnavailable } from './image.js';

try {
  await guestImage();
} catch (error) {
  if (!(error instanceof GuestUnavailable)) throw error;
  process.stderr.write(
    `no guest can run here, tests that need one will say so: ${error.message}\n`,
  );
}
