// What stands in the way of who needs a page of the pool, as errors.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import { PageFailure, type PageCache } from './pages.js';

/** Why a page cannot be had: the device's own error, or POOL_CORRUPT. */
export function pageError(pages: PageCache, device: BlockDevice): PenstockError {
  if (pages.failure === PageFailure.corrupt) {
    return corruptError(`page ${pages.failurePbn} cannot be used`);
  }
  const { code, message, hint } = device.explain(pages.failureStatus);
  return new PenstockError(code, `page ${pages.failurePbn} of the pool: ${message}`, { hint });
}

export function corruptError(what: string): PenstockError {
  return new PenstockError('POOL_CORRUPT', `the pool is damaged: ${what}`, {
    hint: '`penstock pool check` says what can still be used',
  });
}
