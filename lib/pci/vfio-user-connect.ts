// From a path to a connected socket of a vfio-user server.

import { statSync, type Stats } from 'node:fs';
import { join } from 'node:path';
import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';

/** The socket's name in a folder that a server was given. */
const SOCKET_NAME = 'cntrl';
/** sun_path, less the NUL that ends it. */
const PATH_BYTES_MAX = 107;

/**
 * `path` is a socket, or a folder with one named `cntrl`. Errors: NO_SUCH_SOCKET,
 * CONNECTION_REFUSED, BUSY, PERMISSION_DENIED.
 */
export function connectServer(path: string): number {
  const socket = socketAt(path);
  if (Buffer.byteLength(socket) > PATH_BYTES_MAX) {
    throw noSocket(path, `has more than ${PATH_BYTES_MAX} bytes`);
  }
  try {
    return native.streamConnect(socket);
  } catch (cause) {
    throw connectError(socket, cause);
  }
}

function socketAt(path: string): string {
  const found = look(path);
  if (found.isSocket()) return path;
  if (!found.isDirectory()) throw noSocket(path, 'is no socket');
  const inside = join(path, SOCKET_NAME);
  if (!look(inside).isSocket()) throw noSocket(inside, 'is no socket');
  return inside;
}

function look(path: string): Stats {
  try {
    return statSync(path);
  } catch (cause) {
    throw connectError(path, cause);
  }
}

function connectError(path: string, cause: unknown): unknown {
  switch (errnoCode(cause)) {
    case 'ENOENT':
    case 'ENOTDIR':
      return noSocket(path, 'is not there', cause);
    case 'ECONNREFUSED':
    case 'EPROTOTYPE':
      return new PenstockError('CONNECTION_REFUSED', `nobody serves vfio-user at ${path}`, {
        hint: 'start the server; a socket that a dead one left behind refuses too',
        cause,
      });
    case 'EAGAIN':
      return new PenstockError('BUSY', `${path}: others wait for this server already`, {
        hint: 'it takes one client at a time: close the other, or wait until it ended',
        cause,
      });
    case 'EACCES':
    case 'EPERM':
      return new PenstockError('PERMISSION_DENIED', `${path} may not be connected to`, {
        hint: 'the socket must be writable for this user, its folders searchable',
        cause,
      });
    default:
      return cause;
  }
}

function noSocket(path: string, why: string, cause?: unknown): PenstockError {
  return new PenstockError('NO_SUCH_SOCKET', `${path} ${why}`, {
    hint: `give the socket of a vfio-user server, or the folder with its ${SOCKET_NAME}`,
    ...(cause === undefined ? {} : { cause }),
  });
}
