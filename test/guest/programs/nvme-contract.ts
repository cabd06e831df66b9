// Runs the contract suite of HPDI on controllers of QEMU. Its argument is a list of cases as JSON:
// name, URI, and the URI that is to be opened for the tests of a read-only device.

import { register } from 'node:module';
import { open } from '../../../lib/index.js';
import { bindAll } from '../nvme-inside.js';
import { report } from '../inside.js';

export interface ContractCase {
  name: string;
  uri: string;
  readOnly: string;
}

register('../suite-hooks.js', import.meta.url);
const { contractSuite } = await import('../../support/contract.js');
const { runSuites } = await import('../suite.js');

bindAll();
for (const { name, uri, readOnly } of JSON.parse(process.argv[2]!) as ContractCase[]) {
  const opened = async (which: string) => {
    const device = await open(which);
    if (which === uri) report(`${name}: device`, device.info);
    return { device };
  };
  contractSuite(name, () => opened(uri), {
    data: true,
    discardZeroes: true,
    openReadOnly: () => opened(readOnly),
    modelRuns: 2,
  });
  const started = performance.now();
  const result = await runSuites();
  report(name, { ...result, seconds: Math.round((performance.now() - started) / 1000) });
}
