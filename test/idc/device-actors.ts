// Servers and clients of devices as processes of a test.

import { Actor, startMember } from './actors.js';

export interface ServerOptions {
  readonly depth?: number;
  readonly limitIops?: number;
  readonly limitBytes?: number;
  readonly lentBytes?: number;
  readonly queues?: number;
  readonly thirdParties?: boolean;
}

/** A process that serves a device under a name. */
export async function startServer(
  hub: string,
  name: string,
  device: string,
  options: ServerOptions = {},
): Promise<Actor> {
  const actor = await startMember(hub, name);
  await actor.run(
    async (stage, uri, given) => {
      stage.device = await stage.open(uri);
      stage.server = new stage.idc.DeviceServer(stage.domain, stage.device, given);
    },
    device,
    options,
  );
  return actor;
}

/** A process that has opened a served device. */
export async function startClient(
  hub: string,
  name: string,
  served: string,
  keys = '',
): Promise<Actor> {
  const actor = await Actor.start();
  await actor.run(async (stage, uri) => {
    stage.device = await stage.open(uri);
  }, `idc:${hub}/${served}?name=${name}${keys}`);
  return actor;
}
