import { randomBytes } from 'node:crypto';
import { open, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value >>> 0;
});

/**
 * Finds where pg_control keeps its CRC-32C. The struct grows with the major versions, but the checksum always covers
 * exactly the bytes before it, so the place tells itself.
 */
function checksumOffset(control: Buffer): number {
  let crc = 0xffffffff;
  for (let offset = 0; offset < 512; offset++) {
    if (offset >= 128 && offset % 4 === 0 && control.readUInt32LE(offset) === (crc ^ 0xffffffff) >>> 0) return offset;
    crc = CRC_TABLE[(crc ^ control[offset]) & 0xff] ^ (crc >>> 8);
  }
  return -1;
}

function checksum(bytes: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Whether a copy of pg_control is whole: the server may have been writing it while it was read. */
export function controlIsWhole(control: Buffer): boolean {
  return control.length >= 512 && checksumOffset(control) > 0;
}

/** A system identifier made the way initdb makes one: seconds above, noise below. */
export function newSystemIdentifier(): bigint {
  return (BigInt(Math.floor(Date.now() / 1000)) << 32n) | BigInt(randomBytes(4).readUInt32LE());
}

/**
 * Gives a copied, cleanly stopped data directory a system identifier of its own. Copies of one template would
 * otherwise all claim to be the same database cluster, and whoever tells clusters apart by that number (as the outcome
 * tokens do) would be fooled. It stands in pg_control and in the first page header of each WAL file.
 */
export async function setSystemIdentifier(dataDir: string, identifier: bigint): Promise<void> {
  const controlPath = join(dataDir, 'global', 'pg_control');
  const control = await readFile(controlPath);
  const offset = checksumOffset(control);
  if (offset < 0) throw new Error(`embedded PostgreSQL: ${controlPath} has no checksum where one was expected`);
  const before = control.readBigUInt64LE(0);
  control.writeBigUInt64LE(identifier, 0);
  control.writeUInt32LE(checksum(control.subarray(0, offset)), offset);

  const walDir = join(dataDir, 'pg_wal');
  const header = Buffer.alloc(8);
  for (const name of await readdir(walDir)) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    const file = await open(join(walDir, name), 'r+');
    try {
      await file.read(header, 0, 8, 24);
      if (header.readBigUInt64LE(0) !== before) {
        throw new Error(`embedded PostgreSQL: ${name} does not carry the identifier of its cluster`);
      }
      header.writeBigUInt64LE(identifier, 0);
      await file.write(header, 0, 8, 24);
    } finally {
      await file.close();
    }
  }
  const file = await open(controlPath, 'r+');
  try {
    await file.write(control, 0, control.length, 0);
  } finally {
    await file.close();
  }
}
