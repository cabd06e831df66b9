// SIGINT and SIGTERM while a command runs: the first asks it to end with what there is, the second
// ends the process.

import { Exit } from './output.js';

export interface Interrupts {
  readonly signal: AbortSignal;
  /** Stops catching: signals end the process again as they do by default. */
  release(): void;
}

export function catchInterrupts(): Interrupts {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (controller.signal.aborted) process.exit(Exit.INTERRUPTED);
    controller.abort();
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  return {
    signal: controller.signal,
    release: () => {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
    },
  };
}
