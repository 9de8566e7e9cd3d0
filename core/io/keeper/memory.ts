import { ftruncateSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { CodedError } from '../../contract/index.js';
import { closeDescriptor } from './passing.js';

// Numbers of Linux (asm-generic, which x86-64 and arm64 use).
const MFD_CLOEXEC = 1;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;

/** Memory that outlives this process for as long as somebody holds its descriptor. */
export interface SharedMemory {
  readonly fd: number;
  readonly bytes: Uint8Array;
}

/**
 * Makes memory that is also a file without a name (memfd_create(2), mmap(2)). It stays mapped until this process ends.
 * @throws OUTLIVE_KEEPER_CALL
 */
export function shareMemory(length: number): SharedMemory {
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
  const library = koffi.load(null);
  const failed = (call: string) =>
    new CodedError('OUTLIVE_KEEPER_CALL', 'system', `${call} failed (errno ${koffi.errno()})`);
  const fd = library.func('memfd_create', 'int', ['str', 'uint32_t'])('outlive', MFD_CLOEXEC) as number;
  if (fd < 0) throw failed('memfd_create');
  ftruncateSync(fd, length);
  const parameters = ['void *', 'size_t', 'int', 'int', 'int', 'long'];
  const mmap = library.func('mmap', 'void *', parameters);
  const at = mmap(null, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) as bigint;
  if (at === -1n || at === 0xffff_ffff_ffff_ffffn) {
    const error = failed('mmap');
    closeDescriptor(fd);
    throw error;
  }
  return { fd, bytes: new Uint8Array(koffi.view(at, length)) };
}

/** What another process has left in the memory of this descriptor; null when it is shorter than that. */
export function readMemory(fd: number, length: number): Uint8Array | null {
  const bytes = Buffer.alloc(length);
  return readSync(fd, bytes, 0, length, 0) === length ? bytes : null;
}
