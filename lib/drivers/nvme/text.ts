// Bytes of a device as text and numbers. A device's strings are printed on terminals: nothing but
// printable ASCII gets through.

/** ASCII up to the first NUL; `\x1b` for what is not printable. */
export function fixedText(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) {
    if (byte === 0) break;
    const printable = byte >= 0x20 && byte < 0x7f;
    text += printable ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`;
  }
  return text;
}

/** `fixedText` without the blanks around it. */
export function trimmedText(bytes: Uint8Array): string {
  return fixedText(bytes).trim();
}

export function hexText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

/** `2f1a…` of 16 bytes as `2f1a….-….-…`: the 8-4-4-4-12 form of a UUID. */
export function uuidText(hex: string): string {
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** A little-endian number of any width. */
export function littleEndian(bytes: Uint8Array): bigint {
  let value = 0n;
  for (let at = bytes.length - 1; at >= 0; at--) value = (value << 8n) | BigInt(bytes[at]!);
  return value;
}
