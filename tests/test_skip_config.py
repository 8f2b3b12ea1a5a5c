import fuzz_inputs
import pytest

from adn_mmdet import SkipConfig, UserError


@pytest.mark.parametrize('code', ['TFFF', 'tfff', SkipConfig((True, False, False, False)), [True, False, False, False]])
def test_every_spelling_is_one_code(code):
    skip = SkipConfig.parse(code, 4)
    assert str(skip) == 'TFFF'
    assert list(skip) == [True, False, False, False]
    assert len(skip) == 4
    assert skip == SkipConfig.parse('TFFF')


def test_super_net_base_net_and_all():
    assert str(SkipConfig.super_net(4)) == 'FFFF'
    assert str(SkipConfig.base_net(3)) == 'TTT'
    codes = [str(skip) for skip in SkipConfig.all(4)]
    assert len(set(codes)) == 16 and codes[0] == 'FFFF' and codes[-1] == 'TTTT'


@pytest.mark.parametrize(
    'code', ['TTT', 'TTXT', '', 'TTTTT', 'T TT', '0101', [1, 0, 0, 0], None, 5, 'ﬀﬀ', b'TTTT', 0.5, True]
)
def test_anything_else_is_refused_with_examples(code):
    with pytest.raises(ValueError, match='is not a skip code.*FFFF .super-net. or TTTT .base-net.') as error:
        SkipConfig.parse(code, 4)
    assert repr(code) in str(error.value)


def test_list_of_codes():
    assert [str(skip) for skip in SkipConfig.parse_list('FFFF, tfff,TTTT,FFFF', 4)] == ['FFFF', 'TFFF', 'TTTT']
    assert SkipConfig.parse_list('all', 4) == SkipConfig.all(4)
    with pytest.raises(ValueError, match="'' is not a skip code"):
        SkipConfig.parse_list('FFFF,', 4)


@pytest.mark.parametrize('flags', ['FFFF', [True, False], (1, 0), None])
def test_flags_are_a_tuple_of_bools(flags):
    with pytest.raises(
        UserError, match='SkipConfig takes a tuple of bools, but got .*: read codes by SkipConfig.parse'
    ):
        SkipConfig(flags)


def test_damaged_codes_are_refused_or_what_they_say(tmp_path):
    assert fuzz_inputs.skip_codes(500, seed=0, folder=tmp_path).keys() == {'refused', 'read'}


def test_groups_stand_between_hyphens():
    skip = SkipConfig.parse('ttff-t', (4, 1))
    assert str(skip) == 'TTFF-T' and skip == SkipConfig.parse('TTFFT', (4, 1)) == SkipConfig.parse('TTFFT')
    assert str(SkipConfig.parse('TTFFTF', (4, 1, 1))) == 'TTFF-T-F' and str(SkipConfig.parse('TF-T')) == 'TF-T'
    assert str(SkipConfig.parse(skip)) == 'TTFF-T' and SkipConfig.parse('TTFF-T').groups == (4, 1)
    assert [str(skip) for skip in SkipConfig.all((1, 1))] == ['F-F', 'F-T', 'T-F', 'T-T']
    assert str(SkipConfig.super_net((4, 1))) == 'FFFF-F' and str(SkipConfig.base_net((4, 1, 1))) == 'TTTT-T-T'


@pytest.mark.parametrize('code', ['TTTT', 'TT-TTT', 'TTTT-', '-TTTTT', 'TTTT--T', 'TTTT-T-T', SkipConfig((True,) * 4)])
def test_codes_of_other_groups_are_refused(code):
    with pytest.raises(UserError, match='4 in all, and one of each of 1 parts beyond.*FFFF-F .*TTTT-T'):
        SkipConfig.parse(code, (4, 1))
