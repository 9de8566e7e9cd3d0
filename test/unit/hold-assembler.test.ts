import { describe, expect, it } from 'vitest';
import {
  alu,
  alu32,
  assemble,
  call,
  exit,
  type Instruction,
  jump,
  jumpIf,
  jumpIf32,
  type Label,
  label,
  load,
  loadMap,
  move,
  networkOrder,
  store,
} from '../../core/io/hold/assembler.js';

function hex(...parts: (Instruction | Label)[]): string {
  return Buffer.from(assemble(parts)).toString('hex');
}

describe('the eBPF assembler', () => {
  // The expected bytes follow from the tables of RFC 9669.
  it.each<[string, Instruction, string]>([
    ['r0 = -1', move('r0', -1), 'b7000000ffffffff'],
    ['r6 = r1', move('r6', 'r1'), 'bf16000000000000'],
    ['r2 += 14', alu('add', 'r2', 14), '070200000e000000'],
    ['r9 += r2', alu('add', 'r9', 'r2'), '0f29000000000000'],
    ['r1 -= r9', alu('sub', 'r1', 'r9'), '1f91000000000000'],
    ['r2 &= 15', alu('and', 'r2', 15), '570200000f000000'],
    ['r2 |= 1', alu('or', 'r2', 1), '4702000001000000'],
    ['r2 <<= 2', alu('lsh', 'r2', 2), '6702000002000000'],
    ['r2 >>= 4', alu('rsh', 'r2', 4), '7702000004000000'],
    ['w5 -= w4', alu32('sub', 'r5', 'r4'), '1c45000000000000'],
    ['w1 = 7', alu32('mov', 'r1', 7), 'b401000007000000'],
    ['r3 = be16 r3', networkOrder('r3', 16), 'dc03000010000000'],
    ['r3 = be32 r3', networkOrder('r3', 32), 'dc03000020000000'],
    ['r2 = *(u8 *)(r7 + 23)', load(1, 'r2', 'r7', 23), '7172170000000000'],
    ['r3 = *(u16 *)(r7 + 12)', load(2, 'r3', 'r7', 12), '69730c0000000000'],
    ['r7 = *(u32 *)(r6 + 76)', load(4, 'r7', 'r6', 76), '61674c0000000000'],
    ['r2 = *(u64 *)(r7 + 22)', load(8, 'r2', 'r7', 22), '7972160000000000'],
    ['*(u32 *)(r10 - 8) = r3', store(4, 'r10', -8, 'r3'), '633af8ff00000000'],
    ['*(u64 *)(r10 - 40) = 0', store(8, 'r10', -40, 0), '7a0ad8ff00000000'],
    ['*(u16 *)(r10 - 2) = 5', store(2, 'r10', -2, 5), '6a0afeff05000000'],
    ['*(u8 *)(r8 + 1) = r4', store(1, 'r8', 1, 'r4'), '7348010000000000'],
    ['call 1', call(1), '8500000001000000'],
    ['exit', exit(), '9500000000000000'],
    ['r1 = map 7', loadMap('r1', 7), '18110000070000000000000000000000'],
  ])('%s', (_, instruction, bytes) => {
    expect(hex(instruction)).toBe(bytes);
  });

  it.each<[string, Instruction, string]>([
    ['goto +1', jump('end'), '05000100'],
    ['if r2 > r8 goto +1', jumpIf('r2', '>', 'r8', 'end'), '2d820100'],
    ['if r2 < 8 goto +1', jumpIf('r2', '<', 8, 'end'), 'a5020100'],
    ['if r3 == 8 goto +1', jumpIf('r3', '==', 8, 'end'), '15030100'],
    ['if r3 != 8 goto +1', jumpIf('r3', '!=', 8, 'end'), '55030100'],
    ['if r3 & 8 goto +1', jumpIf('r3', 'has', 8, 'end'), '45030100'],
    ['if w5 s> 0 goto +1', jumpIf32('r5', 's>', 0, 'end'), '66050100'],
    ['if w5 == w4 goto +1', jumpIf32('r5', '==', 'r4', 'end'), '1e450100'],
  ])('%s', (_, instruction, bytes) => {
    expect(hex(instruction, exit(), label('end'), exit()).slice(0, 8)).toBe(bytes);
  });

  it('counts jumps in slots, of which a map takes two', () => {
    const bytes = hex(jump('end'), loadMap('r1', 3), label('back'), call(1), label('end'), jump('back'));
    expect(bytes.slice(0, 16)).toBe('0500030000000000');
    expect(bytes.slice(-16)).toBe('0500feff00000000');
  });

  it('refuses what cannot be written', () => {
    expect(() => hex(jump('nowhere'))).toThrow(/nowhere is missing/);
    expect(() => hex(label('here'), label('here'))).toThrow(/here is there twice/);
    expect(() => hex(load(4, 'r1', 'r2', 32_768))).toThrow(/offset 32768/);
    expect(() => hex(move('r1', 2 ** 31))).toThrow(/number 2147483648/);
  });
});
